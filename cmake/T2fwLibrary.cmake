# The library: its objects once, shared by libt2fw.so, the tests and the Python module.
set(t2fw_kokkos_sources
  core/kokkos/kokkos_backend.cpp
  core/kokkos/decay_forward.cpp
  core/kokkos/decay_backward.cpp
  core/kokkos/delta_forward.cpp
  core/kokkos/delta_backward.cpp
  core/kokkos/step.cpp)

add_library(t2fw_objects OBJECT
  core/api/checks.cpp
  core/api/descriptor.cpp
  core/api/plan.cpp
  core/api/execute.cpp
  core/api/error.cpp
  backends/registry.cpp
  backends/reference/reference.cpp
  ${t2fw_kokkos_sources})
if(T2FW_CUDA)
  target_sources(t2fw_objects PRIVATE
    backends/cuda/cuda_backend.cpp
    backends/cuda/decay_backward.cu
    backends/cuda/decay_forward.cu
    backends/cuda/launch.cu
    backends/cuda/plain_backward.cu
    backends/cuda/plain_forward.cu
    backends/cuda/step.cu)
endif()
target_include_directories(t2fw_objects PUBLIC core/include core PRIVATE .)
target_link_libraries(t2fw_objects PUBLIC Kokkos::kokkos)
target_compile_definitions(t2fw_objects PUBLIC
  $<$<BOOL:${T2FW_CUDA}>:T2FW_WITH_KOKKOS_CUDA>
  $<$<BOOL:${T2FW_HIP}>:T2FW_WITH_KOKKOS_HIP>
  $<$<BOOL:${T2FW_RACECHECK}>:T2FW_RACECHECK>
  $<$<BOOL:${T2FW_HOST_BLOCKS}>:T2FW_HOST_BLOCKS>)
set_target_properties(t2fw_objects PROPERTIES
  CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
t2fw_set_warnings(t2fw_objects)
if(NOT T2FW_HIP)
  # HIP's clang would look for OpenMP's runtime on the device.
  target_compile_options(t2fw_objects PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp-simd>)
endif()
if(T2FW_CUDA)
  # The runtime's headers for sources that stay C++.
  target_link_libraries(t2fw_objects PUBLIC CUDA::toolkit)
  set_source_files_properties(${t2fw_kokkos_sources} PROPERTIES LANGUAGE CUDA)
  # constexpr functions of the neutral headers (bytes_of) serve device code too.
  target_compile_options(t2fw_objects PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
endif()

# Only the C API leaves the library, whatever is linked into it.
set(t2fw_version_script ${PROJECT_SOURCE_DIR}/cmake/t2fw.map)
add_library(t2fw SHARED)
add_library(t2fw::t2fw ALIAS t2fw)
target_link_libraries(t2fw PRIVATE t2fw_objects)
target_include_directories(t2fw INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/core/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_options(t2fw PRIVATE LINKER:--version-script=${t2fw_version_script} LINKER:--exclude-libs,ALL)
set_target_properties(t2fw PROPERTIES
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} LINK_DEPENDS ${t2fw_version_script})
