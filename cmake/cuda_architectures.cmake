# gptoss_cuda_architectures(RESULT WANTED NATIVE): the architectures to compile for. `native` becomes NATIVE, which is
# what CMake found on this machine. Machine code of 9.0 becomes that of 9.0a, without which there is no wgmma: on a
# Hopper, prompts would run at half the speed. PTX stays as it is, for 'a' is of one GPU alone; later GPUs need no 'a'.
function(gptoss_cuda_architectures result wanted native)
  set(found)
  foreach(architecture IN LISTS wanted)
    if(architecture STREQUAL "native")
      gptoss_cuda_architectures(architecture "${native}" "")
    elseif(architecture STREQUAL "90")
      set(architecture 90a-real 90-virtual)
    elseif(architecture STREQUAL "90-real")
      set(architecture 90a-real)
    endif()
    list(APPEND found ${architecture})
  endforeach()
  list(REMOVE_DUPLICATES found)
  set(${result} ${found} PARENT_SCOPE)
endfunction()
