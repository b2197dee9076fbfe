# Kokkos 4.7.0 and GoogleTest, where the machine has none. The source package pygenten on PyPI carries both whole, so pip,
# with whatever index it is configured for, is all that is needed. Fetched once, checked, unpacked into T2FW_CACHE.
set(t2fw_archive_name pygenten-0.1.5)
set(t2fw_archive_sha256 e620f05c742905e2db705d875f1cac92ef0ed453f9e6734e9beda26cc0f9cce7)

# Sets ${result} to a folder with kokkos/ and googletest/ in it.
function(t2fw_fetch_archive result)
  set(unpacked ${T2FW_CACHE}/${t2fw_archive_name})
  file(MAKE_DIRECTORY ${T2FW_CACHE})
  file(LOCK ${T2FW_CACHE}/lock GUARD FUNCTION TIMEOUT 600)
  if(NOT EXISTS ${unpacked}/tpls/kokkos/CMakeLists.txt)
    set(archive ${T2FW_CACHE}/${t2fw_archive_name}.tar.gz)
    set(sum "")
    if(EXISTS ${archive})
      file(SHA256 ${archive} sum)
    endif()
    if(NOT sum STREQUAL t2fw_archive_sha256)
      set(Python_FIND_UNVERSIONED_NAMES FIRST)
      set(Python_FIND_STRATEGY LOCATION)
      find_package(Python 3 REQUIRED COMPONENTS Interpreter)
      message(STATUS "Fetching ${t2fw_archive_name} (Kokkos and GoogleTest, 17 MB) into ${T2FW_CACHE}")
      execute_process(
        COMMAND ${Python_EXECUTABLE} -m pip download --quiet --no-deps --no-binary :all: --dest ${T2FW_CACHE} pygenten==0.1.5
        RESULT_VARIABLE failed)
      if(failed)
        message(FATAL_ERROR "pip could not download ${t2fw_archive_name}. Install Kokkos >= 4.7 and point "
          "CMAKE_PREFIX_PATH at it, or put ${t2fw_archive_name}.tar.gz into ${T2FW_CACHE}")
      endif()
      file(SHA256 ${archive} sum)
      if(NOT sum STREQUAL t2fw_archive_sha256)
        file(REMOVE ${archive})
        message(FATAL_ERROR "${t2fw_archive_name}.tar.gz has the SHA-256 ${sum}, not ${t2fw_archive_sha256}")
      endif()
    endif()
    # Renamed into place when complete, so that an interrupted unpacking is never taken for a whole one.
    file(REMOVE_RECURSE ${T2FW_CACHE}/unpacking ${unpacked})
    file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${T2FW_CACHE}/unpacking
      PATTERNS ${t2fw_archive_name}/tpls/kokkos/* ${t2fw_archive_name}/tpls/googletest/*)
    file(RENAME ${T2FW_CACHE}/unpacking/${t2fw_archive_name} ${unpacked})
  endif()
  set(${result} ${unpacked}/tpls PARENT_SCOPE)
endfunction()
