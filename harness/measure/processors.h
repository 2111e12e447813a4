// Which processors and how many threads this process uses.
#pragma once

namespace subquad {

// Threads of the OpenMP team of later parallel regions; never fewer are used (no dynamic teams).
void set_threads(int threads);

// All processors that this process may use: for references, whose bits do not depend on it.
int usable_processors();

// Binds thread t of the team to the t-th usable processor. UserError when there are fewer than
// `threads`.
void pin_threads(int threads);

}  // namespace subquad
