# CUDA as a language, found from the toolkit itself: an nvcc on PATH may be a wrapper that CMake cannot follow.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(t2fw_nvcc nvcc HINTS ${CUDAToolkit_ROOT} $ENV{CUDAToolkit_ROOT} $ENV{CUDA_PATH} $ENV{CUDA_HOME}
    PATHS /usr/local/cuda PATH_SUFFIXES bin NO_DEFAULT_PATH)
  find_program(t2fw_nvcc nvcc REQUIRED)
  file(REAL_PATH ${t2fw_nvcc} t2fw_nvcc_real)
  set(CMAKE_CUDA_COMPILER ${t2fw_nvcc_real} CACHE FILEPATH "")
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90 CACHE STRING "")
endif()
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  # CMake 3.25 does not know that nvcc has C++20 since 12.0.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
  set(CMAKE_CUDA20_COMPILE_FEATURES cuda_std_20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit REQUIRED)

if(NOT TARGET CUDA::cuda_driver)
  # Linking needs the driver library, which a machine without a GPU may lack. This one is for the linker only: the loader
  # looks for libcuda.so.1, which is the real one or none. It is never installed.
  set(stub ${PROJECT_BINARY_DIR}/cuda_stub)
  file(WRITE ${stub}/stub.cpp
    "extern \"C\" {\nint cuCtxGetCurrent() { return 1; }\nint cuCtxGetDevice(int*) { return 1; }\n"
    "int cuCtxPushCurrent_v2(void*) { return 1; }\nint cuStreamGetCtx(void*, void**) { return 1; }\n"
    "int cuTensorMapEncodeTiled() { return 1; }\n}\n")
  execute_process(
    COMMAND ${CMAKE_CXX_COMPILER} -shared -fPIC -Wl,-soname,libcuda.so.1 ${stub}/stub.cpp -o ${stub}/libcuda.so
    COMMAND_ERROR_IS_FATAL ANY)
  set(CUDA_cuda_driver_LIBRARY ${stub}/libcuda.so CACHE FILEPATH "" FORCE)
  find_package(CUDAToolkit REQUIRED)
endif()
