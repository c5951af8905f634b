# Included in every project of the workspace when ROS 2 comes from PyPI wheels.
#
# The wheels' exported targets name the Python include folder of the container they were built in. CMake refuses a
# target whose include folder does not exist, so those folders are dropped here; the real one comes from FindPython.
function(kestrel_drop_missing_includes)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT folders)
      continue()
    endif()
    set(existing)
    foreach(folder IN LISTS folders)
      if(folder MATCHES "^\\$<" OR EXISTS "${folder}")
        list(APPEND existing "${folder}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
  endforeach()
endfunction()

cmake_language(DEFER CALL kestrel_drop_missing_includes)
