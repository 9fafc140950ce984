"""The release number: this file is read by the build, by the C++ runner's CMake file and by the package."""
__version__ = "0.1.0"
