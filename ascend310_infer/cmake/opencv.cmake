# The target mindseg::opencv. Not by find_package(OpenCV): Debian puts OpenCVConfig.cmake into the 500 MB libopencv-dev,
# while three small -dev packages hold all that is needed. Also part of the installed package.
find_path(OPENCV_INCLUDE_DIR opencv2/imgcodecs.hpp PATH_SUFFIXES opencv4)
set(OPENCV_LIBRARIES "")
foreach(module core imgproc imgcodecs)
  find_library(OPENCV_${module} opencv_${module})
  list(APPEND OPENCV_LIBRARIES ${OPENCV_${module}})
endforeach()
if(NOT TARGET mindseg::opencv)
  add_library(mindseg::opencv INTERFACE IMPORTED)
  set_target_properties(mindseg::opencv PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${OPENCV_INCLUDE_DIR}"
                                                   INTERFACE_LINK_LIBRARIES "${OPENCV_LIBRARIES}")
endif()
