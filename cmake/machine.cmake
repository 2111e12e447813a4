# What harness/measure/machine.cpp and harness/core/cpu_check.cpp are told about the build.
target_link_options(subquad PRIVATE -Wl,--build-id=sha1)  # rows of another build are recognised by it

string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
get_directory_property(directory_options COMPILE_OPTIONS)
list(JOIN SUBQUAD_ARCH_FLAGS " " arch_flags)
list(JOIN directory_options " " directory_flags)
string(JOIN " " all_flags ${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}} ${arch_flags}
       ${OpenMP_CXX_FLAGS} -std=c++20 ${directory_flags})
set_property(SOURCE harness/measure/machine.cpp APPEND PROPERTY COMPILE_DEFINITIONS
  SUBQUAD_BUILD_TYPE="${CMAKE_BUILD_TYPE}" SUBQUAD_CXX_FLAGS="${all_flags}"
  SUBQUAD_YAML_CPP_VERSION="${yaml-cpp_VERSION}" SUBQUAD_BENCHMARK_VERSION="${benchmark_VERSION}"
  SUBQUAD_CLI11_VERSION="${CLI11_VERSION}" SUBQUAD_FFTW_VERSION="${FFTW_VERSION}")

# The check that the processor has what the build needs must run on any processor.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(harness/core/cpu_check.cpp PROPERTIES
    COMPILE_OPTIONS "-march=x86-64;-mtune=generic")
endif()

add_custom_target(subquad_revision ALL
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUTPUT=${CMAKE_BINARY_DIR}/revision.txt
          -P ${CMAKE_SOURCE_DIR}/cmake/revision.cmake
  COMMENT "Reading the git revision" VERBATIM)
add_dependencies(subquad subquad_revision)
