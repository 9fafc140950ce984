# Downloads the headers that are not installed, for hosts without a package manager (-DSEGMENT_FETCH=ON).
include(FetchContent)
if(NOT JSON_INCLUDE_DIR)
  FetchContent_Declare(json URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
                       URL_HASH SHA256=d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d
                       SOURCE_SUBDIR none)  # the headers only, not its targets
  FetchContent_MakeAvailable(json)
  set(JSON_INCLUDE_DIR ${json_SOURCE_DIR}/include)
endif()
if(NOT CLI11_INCLUDE_DIR)
  FetchContent_Declare(cli11 URL https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.2.tar.gz
                       URL_HASH SHA256=f2d893a65c3b1324c50d4e682c0cdc021dd0477ae2c048544f39eed6654b699a
                       SOURCE_SUBDIR none)
  FetchContent_MakeAvailable(cli11)
  set(CLI11_INCLUDE_DIR ${cli11_SOURCE_DIR}/include)
endif()
