# The target `demo`: attention against decaying fast weights, with the package that is staged in this build tree.
if(NOT T2FW_PYTHON OR DEFINED SKBUILD)
  message(FATAL_ERROR "T2FW_DEMO needs T2FW_PYTHON in a build tree of its own: cmake --workflow --preset demo")
endif()
# Threads that wait do not spin: PyTorch and the library each bring their own.
add_custom_target(demo
  COMMAND ${CMAKE_COMMAND} -E env PYTHONPATH=${PROJECT_BINARY_DIR}/python PYTHONDONTWRITEBYTECODE=1
    OMP_PROC_BIND=false OMP_WAIT_POLICY=passive
    ${t2fw_venv}/bin/python ${PROJECT_SOURCE_DIR}/bindings/python/demo/compare_rules.py
    --out ${PROJECT_BINARY_DIR}/demo
  DEPENDS _t2fw
  USES_TERMINAL VERBATIM)
