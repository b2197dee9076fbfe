# Installation: find_package(t2fw) gives t2fw::t2fw, pkg-config gives t2fw.
include(CMakePackageConfigHelpers)
set(t2fw_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/t2fw)

install(TARGETS t2fw EXPORT t2fw-targets)
install(DIRECTORY core/include/t2fw DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN *.h PATTERN *.hpp)
install(EXPORT t2fw-targets NAMESPACE t2fw:: DESTINATION ${t2fw_config_dir})
configure_package_config_file(cmake/t2fw-config.cmake.in ${PROJECT_BINARY_DIR}/t2fw-config.cmake
  INSTALL_DESTINATION ${t2fw_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/t2fw-config-version.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/t2fw-config.cmake ${PROJECT_BINARY_DIR}/t2fw-config-version.cmake
  DESTINATION ${t2fw_config_dir})

# Relative to the .pc file itself, so that an installed tree can be moved.
file(RELATIVE_PATH t2fw_pc_to_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(cmake/t2fw.pc.in ${PROJECT_BINARY_DIR}/t2fw.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/t2fw.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
