# What a user may choose, and what every target of ours is compiled with.
include(GNUInstallDirs)

option(T2FW_CUDA "Build for NVIDIA GPUs" OFF)
option(T2FW_HIP "Build for AMD GPUs (CMAKE_CXX_COMPILER=hipcc)" OFF)
option(T2FW_OPENMP "Use every core of the CPU; one thread otherwise" ON)
option(T2FW_NATIVE "Compile for this machine's CPU" ON)
option(T2FW_PYTHON "Build the Python module" OFF)
option(T2FW_DEMO "Add the target demo, which trains a small language model" OFF)
option(T2FW_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(T2FW_BENCH "Build the benchmark t2fw_bench, if Google Benchmark is installed" OFF)
option(T2FW_TEST_INSTALL "Test a C program against the installed package" OFF)
option(T2FW_HOST_BLOCKS "Take decay block by block on the CPU too, as on a GPU (slower; for testing)" OFF)
option(T2FW_RACECHECK "Barriers in CUDA kernels that compute-sanitizer's racecheck can follow (slower)" OFF)
option(T2FW_WERROR "Treat warnings in our own code as errors" ${PROJECT_IS_TOP_LEVEL})
if(T2FW_CUDA AND T2FW_HIP)
  message(FATAL_ERROR "One build has one kind of GPU: set T2FW_CUDA or T2FW_HIP, not both")
endif()

if(DEFINED ENV{XDG_CACHE_HOME} AND NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
  set(cache_home $ENV{XDG_CACHE_HOME})
elseif(DEFINED ENV{HOME})
  set(cache_home $ENV{HOME}/.cache)
else()
  set(cache_home ${PROJECT_BINARY_DIR})
endif()
set(T2FW_CACHE ${cache_home}/t2fw CACHE PATH "Where downloads are kept, shared by all build trees")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# Warnings for targets of ours, never for what they include from others.
function(t2fw_set_warnings target)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # False alarms inside GCC 12's own headers: std::string's operator+ (GCC bug 105651), std::sort over a small array
    # (GCC bug 104336), and the AVX-512 intrinsics that initialise a variable with itself (GCC bug 105593).
    set(quiet -Wno-restrict -Wno-array-bounds -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;${quiet}>"
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
  if(T2FW_WERROR)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Werror>
      $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>)
  endif()
endfunction()
