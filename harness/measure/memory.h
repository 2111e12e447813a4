// What the kernel says about this process and this machine: memory, scheduling, clocks.
//
// Everything here reads the own process: a parent's view of a child's peak memory includes the
// parent's own pages and is useless.
#pragma once

#include <cstdint>

#include "harness/core/types.h"

namespace subquad {

std::int64_t vm_hwm_bytes();  // peak resident set (VmHWM); 0 when /proc is not there
std::int64_t vm_rss_bytes();  // resident set now (VmRSS)
std::int64_t thread_tasks();  // threads of this process that the kernel knows

std::int64_t involuntary_context_switches();  // of all threads of this process so far
// Time that threads of this process (those that live) were runnable and had no processor; 0 when
// the kernel does not count it.
double waiting_seconds();
double cpu_seconds();    // processor time of all threads so far
double steal_seconds();  // time that the hypervisor took from this machine, all cores together
double core0_mhz();      // clock of core 0 now; 0 when unknown

double monotonic_seconds();  // stands still while the machine is suspended
double boottime_seconds();   // goes on while the machine is suspended

}  // namespace subquad
