# The Python module _t2fw inside the package t2fw, staged at ${build}/python/t2fw so that it runs without an install.
set(Python_FIND_UNVERSIONED_NAMES FIRST)
set(Python_FIND_STRATEGY LOCATION)
find_package(Python 3.9 REQUIRED COMPONENTS Interpreter Development.Module)

if(NOT DEFINED SKBUILD)
  # The build tree's own environment, with pybind11 in it; made again when its requirements change.
  set(t2fw_venv ${PROJECT_BINARY_DIR}/venv)
  set(t2fw_requirements ${PROJECT_SOURCE_DIR}/tests/python/requirements.txt)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${t2fw_requirements})
  file(SHA256 ${t2fw_requirements} sum)
  set(wanted "${sum} ${Python_EXECUTABLE} ${Python_VERSION}")
  set(present "")
  if(EXISTS ${t2fw_venv}/requirements.stamp)
    file(READ ${t2fw_venv}/requirements.stamp present)
  endif()
  if(NOT present STREQUAL wanted)
    message(STATUS "Making the Python environment in ${t2fw_venv}")
    execute_process(COMMAND ${Python_EXECUTABLE} -m venv --clear ${t2fw_venv} COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${t2fw_venv}/bin/python -m pip install --quiet --requirement ${t2fw_requirements}
      COMMAND_ERROR_IS_FATAL ANY)
    file(WRITE ${t2fw_venv}/requirements.stamp "${wanted}")
  endif()
  execute_process(COMMAND ${t2fw_venv}/bin/python -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 2.12 CONFIG REQUIRED)

pybind11_add_module(_t2fw MODULE NO_EXTRAS bindings/python/module.cpp)
target_link_libraries(_t2fw PRIVATE t2fw_objects)
target_link_options(_t2fw PRIVATE LINKER:--exclude-libs,ALL)
set_target_properties(_t2fw PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/python/t2fw)
t2fw_set_warnings(_t2fw)
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/python/t2fw)
file(GLOB t2fw_python_files CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/bindings/python/t2fw/*.py ${PROJECT_SOURCE_DIR}/bindings/python/t2fw/*.pyi)
foreach(file IN LISTS t2fw_python_files)
  cmake_path(GET file FILENAME name)
  file(CREATE_LINK ${file} ${PROJECT_BINARY_DIR}/python/t2fw/${name} SYMBOLIC)
endforeach()

install(TARGETS _t2fw LIBRARY DESTINATION t2fw COMPONENT python EXCLUDE_FROM_ALL)
