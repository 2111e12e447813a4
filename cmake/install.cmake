# What `cmake --install` puts where: the executable, the headers a plugin includes, the data that
# commands need at run time, and the package for find_package(subquad).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
include(cmake/SubquadPlugin.cmake)

# The interface of a plugin, in the tree and installed: headers, flags and libraries, no code.
add_library(subquad_plugin_interface INTERFACE)
add_library(subquad::subquad ALIAS subquad_plugin_interface)
set_target_properties(subquad_plugin_interface PROPERTIES EXPORT_NAME subquad)
target_include_directories(subquad_plugin_interface INTERFACE
  $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/subquad>)
target_link_libraries(subquad_plugin_interface INTERFACE subquad_flags)
set_target_properties(subquad_flags PROPERTIES EXPORT_NAME flags)

install(TARGETS subquad RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS subquad_plugin_interface subquad_flags EXPORT subquadTargets)
foreach(folder core autodiff model)
  if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/harness/${folder})
    install(DIRECTORY harness/${folder}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/subquad/harness/${folder}
            FILES_MATCHING PATTERN "*.h")
  endif()
endforeach()
foreach(folder plots configs)
  if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/${folder})
    install(DIRECTORY ${folder}/ DESTINATION ${CMAKE_INSTALL_DATADIR}/subquad/${folder}
            PATTERN "__pycache__" EXCLUDE)
  endif()
endforeach()
if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/tasks/data)
  install(DIRECTORY tasks/data/ DESTINATION ${CMAKE_INSTALL_DATADIR}/subquad)
endif()
install(FILES ${CMAKE_BINARY_DIR}/revision.txt DESTINATION ${CMAKE_INSTALL_DATADIR}/subquad)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/subquad)
install(EXPORT subquadTargets NAMESPACE subquad:: DESTINATION ${package_dir})
configure_package_config_file(cmake/subquadConfig.cmake.in ${CMAKE_BINARY_DIR}/subquadConfig.cmake
  INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_BINDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/subquadConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/subquadConfig.cmake ${CMAKE_BINARY_DIR}/subquadConfigVersion.cmake
  cmake/SubquadPlugin.cmake DESTINATION ${package_dir})
