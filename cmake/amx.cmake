# Tables with tiles: "amx" where compiler and assembler know it, and emulated ones in builds for tests.
include(CheckCXXSourceCompiles)

get_source_file_property(avx512_options csrc/cpu/kernels_avx512.cpp COMPILE_OPTIONS)

if(CMAKE_SYSTEM_NAME STREQUAL Linux)
  set(CMAKE_REQUIRED_FLAGS "-mamx-tile -mamx-int8")
  check_cxx_source_compiles(
    "int main() { asm volatile(\"tdpbssd %tmm2, %tmm1, %tmm0\"); }" GPTOSS_COMPILER_KNOWS_AMX)
  unset(CMAKE_REQUIRED_FLAGS)
endif()
if(GPTOSS_COMPILER_KNOWS_AMX)
  target_sources(gptoss_core PRIVATE csrc/cpu/kernels_amx.cpp)
  target_compile_definitions(gptoss_core PRIVATE GPTOSS_AMX)
  set_source_files_properties(csrc/cpu/kernels_amx.cpp PROPERTIES COMPILE_OPTIONS "${avx512_options};-mamx-tile;-mamx-int8")
endif()

if((GPTOSS_SIMT OR GPTOSS_SANITIZE) AND CMAKE_SYSTEM_NAME STREQUAL Linux)
  set(GPTOSS_EMULATED_AMX ON)
  target_sources(gptoss_core PRIVATE tests/amx/kernels_amx_emulated.cpp tests/amx/emulated_kernels.cpp
    tests/amx/tile_state.cpp tests/amx/trap.cpp)
  target_include_directories(gptoss_core PRIVATE tests/amx)
  target_compile_definitions(gptoss_core PUBLIC GPTOSS_EMULATED_AMX)
  set_source_files_properties(tests/amx/kernels_amx_emulated.cpp PROPERTIES COMPILE_OPTIONS "${avx512_options}")
endif()
