# subquad_add_plugin(NAME SOURCES...): a shared object NAME.so that `subquad --plugin` or `plugins:`
# of a config loads. One of the sources holds SUBQUAD_PLUGIN(). What it uses of subquad is resolved
# in the executable that loads it, so nothing is linked twice.
function(subquad_add_plugin name)
  add_library(${name} MODULE ${ARGN})
  set_target_properties(${name} PROPERTIES PREFIX "")
  target_link_libraries(${name} PRIVATE subquad::subquad)
endfunction()
