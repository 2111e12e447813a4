# Puts the starting files of `subquad new` (harness/cli/templates) into the executable, so that the
# command works wherever the executable is.
set(template_dir ${CMAKE_SOURCE_DIR}/harness/cli/templates)
file(GLOB_RECURSE templates CONFIGURE_DEPENDS RELATIVE ${template_dir} ${template_dir}/*.in)
set(embedded "")
foreach(file ${templates})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${template_dir}/${file})
  file(READ ${template_dir}/${file} text)
  string(APPEND embedded "{\"${file}\", R\"subquad~(${text})subquad~\"},\n")
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/templates.inc CONTENT "${embedded}" @ONLY)
set_property(SOURCE harness/cli/new.cpp APPEND PROPERTY COMPILE_DEFINITIONS
  SUBQUAD_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
set_property(SOURCE harness/cli/new.cpp APPEND PROPERTY INCLUDE_DIRECTORIES
  ${CMAKE_BINARY_DIR}/generated)
