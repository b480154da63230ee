# Decides whether this build has the CUDA backend, from GPTOSS_CUDA, and finds what that takes.
# Sets GPTOSS_NVCC_USED; with it, the language CUDA is on and the target CUDA::cudart_static exists.
set(oldest_cuda 12.8)  # the first that knows sm_100a and sm_120a
include(${CMAKE_CURRENT_LIST_DIR}/cuda_architectures.cmake)

set(GPTOSS_NVCC_USED OFF)
if(NOT GPTOSS_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "GPTOSS_CUDA is '${GPTOSS_CUDA}', expected AUTO, ON or OFF")
elseif(GPTOSS_CUDA STREQUAL "OFF")
  return()
endif()

find_program(GPTOSS_NVCC NAMES $ENV{CUDACXX} nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(GPTOSS_CUDA STREQUAL "AUTO")
  # The driver's device file says that there is a GPU, as does its tool where /dev is hidden.
  find_program(GPTOSS_NVIDIA_SMI nvidia-smi)
  if(NOT EXISTS /dev/nvidia0 AND GPTOSS_NVIDIA_SMI)
    execute_process(COMMAND ${GPTOSS_NVIDIA_SMI} -L RESULT_VARIABLE failed OUTPUT_VARIABLE gpus ERROR_QUIET)
  endif()
  if(NOT EXISTS /dev/nvidia0 AND NOT gpus MATCHES "GPU 0")
    message(STATUS "CUDA backend: left out, no GPU is visible; -DGPTOSS_CUDA=ON builds it all the same")
    return()
  elseif(NOT GPTOSS_NVCC)
    message(STATUS "CUDA backend: left out, a GPU is visible but nvcc is not on PATH; install the CUDA toolkit")
    return()
  endif()
elseif(NOT GPTOSS_NVCC)
  message(FATAL_ERROR "GPTOSS_CUDA is ON and nvcc was found neither on PATH nor in CUDA_HOME or /usr/local/cuda; "
                      "install the CUDA toolkit ${oldest_cuda} or newer, set CUDACXX to its nvcc, or build with GPTOSS_CUDA=OFF")
endif()

execute_process(COMMAND ${GPTOSS_NVCC} --version OUTPUT_VARIABLE version_text ERROR_QUIET)
string(REGEX MATCH "release ([0-9.]+)" matched "${version_text}")
if(NOT matched OR CMAKE_MATCH_1 VERSION_LESS oldest_cuda)
  message(FATAL_ERROR "${GPTOSS_NVCC} is of CUDA '${CMAKE_MATCH_1}', expected ${oldest_cuda} or newer, the first for sm_120; "
                      "install a newer CUDA toolkit, or build with GPTOSS_CUDA=OFF")
endif()

# Machine code for each generation, and PTX of 9.0 for every GPU after Hopper that none of it fits: 'a' code runs on
# one compute capability only, so 10.3, 11.0 and 12.1 need PTX no newer than their own. PTX of 12.0 would leave out the
# first two.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 100a-real 120a-real 90-virtual)
endif()
set(CMAKE_CUDA_COMPILER ${GPTOSS_NVCC})
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # linked once, by _native
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
gptoss_cuda_architectures(CMAKE_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}" "${CMAKE_CUDA_ARCHITECTURES_NATIVE}")
set(GPTOSS_NVCC_USED ON)
message(STATUS "CUDA backend: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, for ${CMAKE_CUDA_ARCHITECTURES}")
