// The parts that need no model: tensors, manifest, inputs, preprocessing, files, report, options, queue.
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <opencv2/imgcodecs.hpp>
#include <thread>

#include "inc/bounded_queue.h"
#include "inc/decode.h"
#include "inc/error.h"
#include "inc/files.h"
#include "inc/image_source.h"
#include "inc/manifest.h"
#include "inc/options.h"
#include "inc/output_folder.h"
#include "inc/preprocess.h"
#include "inc/report.h"
#include "inc/tensor.h"
#include "test/check.h"
#include "test/temporary_folder.h"

namespace mindseg {
namespace {

namespace fs = std::filesystem;

const std::string kHash(64, 'a');

const std::string kManifest = R"(format_version: 1
model:
  name: fast_scnn
  num_classes: 2
input:
  name: image
  shape: [1, 3, 4, 6]
  layout: NCHW
  dtype: float32
  color_order: RGB
  normalize: host
  value_range: 255
  mean: [123.675, 116.28, 103.53]
  std: [58.395, 57.12, 57.375]
  resize: {rule: exact, size: [4, 6], pad: false}
  pad_value: [124, 116, 104]
output:
  name: segmentation
  type: argmax
  dtype: uint8
  shape: [1, 4, 6]
dataset: {name: voc, classes: [sky, road], palette: [[1, 2, 3], [4, 5, 6]], ignore_id: 255}
source: {checkpoint: best.ckpt}
versions: {project: 0.1.0}
models:
- {format: onnx, file: a.onnx, batch: 1, sha256: )" +
                              kHash + R"(}
- {format: om, file: b.om, batch: 4, aipp: true, sha256: )" +
                              kHash + R"(}
- {format: om, file: d.om, batch: -1, batches: [1, 8], sha256: )" +
                              kHash + R"(}
)";

std::string Replace(const std::string& from, const std::string& to) {
  std::string text = kManifest;
  const size_t at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error("no '" + from + "' in the test manifest");
  return text.replace(at, from.size(), to);
}

Manifest Parse(const std::string& text) { return ParseManifest(text, "dir/deploy.yaml"); }

uint16_t HalfOf(float value) {
  uint16_t half = 0;
  FloatToHalf(&value, 1, &half);
  return half;
}

std::vector<float> AllHalves() {
  std::vector<uint16_t> bits(0x10000);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  std::vector<float> values(bits.size());
  HalfToFloat(bits.data(), bits.size(), values.data());
  return values;
}

TEST(HalfIsExactForAllHalves) {
  const std::vector<float> values = AllHalves();
  std::vector<uint16_t> back(values.size());
  FloatToHalf(values.data(), values.size(), back.data());
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7c00u) == 0x7c00u && (bits & 0x3ffu) != 0) {
      CHECK(std::isnan(values[bits]));
      CHECK((back[bits] & 0x7c00u) == 0x7c00u && (back[bits] & 0x3ffu) != 0);
    } else {
      CHECK_EQ(uint32_t{back[bits]}, bits);
    }
  }
  CHECK_EQ(values[0x3c00], 1.0f);
  CHECK_EQ(values[0x8001], -std::ldexp(1.0f, -24));
}

TEST(HalfRoundsToNearestEven) {
  const std::vector<float> values = AllHalves();
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const double high = bits == 0x7bff ? 65536.0 : double{values[bits + 1]};
    const auto middle = static_cast<float>((double{values[bits]} + high) / 2);
    CHECK_EQ(HalfOf(middle), static_cast<uint16_t>(bits % 2 ? bits + 1 : bits));
    CHECK_EQ(HalfOf(std::nextafter(middle, 0.0f)), static_cast<uint16_t>(bits));
    CHECK_EQ(HalfOf(-std::nextafter(middle, 1e9f)), static_cast<uint16_t>(0x8000u | (bits + 1)));
  }
  CHECK_EQ(HalfOf(INFINITY), uint16_t{0x7c00});
  CHECK_EQ(HalfOf(-1e9f), uint16_t{0xfc00});
}

TEST(ManyHalvesAreConverted) {
  const size_t count = (size_t{1} << 21) + 3;  // more than one piece
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 2000);
  std::vector<uint16_t> halves(count);
  FloatToHalf(values.data(), count, halves.data());
  std::vector<float> back(count);
  HalfToFloat(halves.data(), count, back.data());
  CHECK(back == values);
}

TEST(ClassIdsOfAnyType) {
  uint8_t ids[3];
  const int64_t wide[3] = {0, 18, 255};
  ToClassIds(DType::kInt64, reinterpret_cast<const uint8_t*>(wide), 3, ids);
  CHECK(ids[0] == 0 && ids[1] == 18 && ids[2] == 255);
  const uint16_t halves[3] = {HalfOf(1), HalfOf(7), HalfOf(200)};
  ToClassIds(DType::kFloat16, reinterpret_cast<const uint8_t*>(halves), 3, ids);
  CHECK(ids[0] == 1 && ids[1] == 7 && ids[2] == 200);
  const int32_t negative = -1;
  CHECK_THROWS(ItemError, ToClassIds(DType::kInt32, reinterpret_cast<const uint8_t*>(&negative), 1, ids), "-1");
  const float nan = NAN;
  CHECK_THROWS(ItemError, ToClassIds(DType::kFloat32, reinterpret_cast<const uint8_t*>(&nan), 1, ids), "nan");
  float logit = 0;
  CHECK_THROWS(UserError, ToFloat32(DType::kUint8, ids, 1, &logit), "uint8");
}

TEST(ManifestIsRead) {
  const Manifest manifest = Parse(kManifest);
  CHECK_EQ(manifest.model_name, "fast_scnn");
  CHECK_EQ(manifest.classes.size(), size_t{2});
  CHECK_EQ(manifest.classes[1], "road");
  CHECK_EQ(manifest.input.height, 4);
  CHECK_EQ(manifest.input.width, 6);
  CHECK_EQ(manifest.input.BytesPerImage(), size_t{288});
  CHECK_EQ(manifest.output.ElementsPerImage(), size_t{24});
  CHECK_EQ(manifest.models[0].path, fs::path("dir/a.onnx"));
  CHECK_EQ(int{manifest.input.pad_value[2]}, 104);
  CHECK_EQ(manifest.FindModel("om", 0).batch, int64_t{4});
  CHECK_EQ(manifest.FindModel("om", 4).batch, int64_t{4});
  CHECK_EQ(manifest.FindModel("om", 8).batch, kDynamicBatch);
  CHECK_EQ(manifest.models[2].gears.back(), int64_t{8});
  CHECK_THROWS(UserError, manifest.FindModel("onnx", 4), "batch 4", "onnx batch 1");
  CHECK_THROWS(UserError, manifest.FindModel("mindir", 0), "mindir", "om batch 4");
}

TEST(ManifestErrorsNameFileKeyAndValue) {
  const struct {
    const char* from;
    const char* to;
    std::vector<std::string> words;
  } cases[] = {
      {"format_version: 1", "format_version: 2", {"format_version", "2"}},
      {"  name: fast_scnn\n", "", {"model.name", "missing"}},
      {"num_classes: 2", "num_classes: many", {"model.num_classes", "many"}},
      {"num_classes: 2", "num_classes: 300", {"model.num_classes", "256"}},
      {"num_classes: 2", "num_classes: 18446744073709551615", {"model.num_classes", "256"}},
      {"num_classes: 2", "num_classes: 5", {"model.num_classes", "5", "2 names"}},
      {"[1, 3, 4, 6]", "[1, 3, 4]", {"input.shape", "3 values"}},
      {"[1, 3, 4, 6]", "[1, 4, 4, 6]", {"input.shape[1]", "4"}},
      {"[1, 3, 4, 6]", "[0, 3, 4, 6]", {"input.shape[0]", "-1"}},
      {"[1, 3, 4, 6]", "[1, 3, -4, 6]", {"input.shape[2]", "-4"}},
      {"[1, 3, 4, 6]", "[1, 3, 4, 6.5]", {"input.shape[3]", "6.5"}},
      {"[1, 3, 4, 6]", "[2, 3, 4, 6]", {"output.shape", "batch"}},
      {"[1, 3, 4, 6]", "[1, 3, 5, 6]", {"input.resize.size", "[5, 6]"}},
      {"layout: NCHW", "layout: CHWN", {"input.layout", "CHWN", "NHWC"}},
      {"dtype: float32", "dtype: uint8", {"input.dtype", "uint8", "float32"}},
      {"color_order: RGB", "color_order: GBR", {"input.color_order", "GBR"}},
      {"value_range: 255", "value_range: 0", {"input.value_range"}},
      {"value_range: 255", "value_range: .inf", {"input.value_range"}},
      {"58.395", "0", {"input.std"}},
      {"[123.675, 116.28, 103.53]", "[123.675]", {"input.mean", "1 values"}},
      {"rule: exact", "rule: crop", {"input.resize.rule", "crop"}},
      {"size: [4, 6]", "size: [4, 5]", {"input.resize.size", "[4, 5]"}},
      {"size: [4, 6]", "size: [5, 6]", {"input.resize.size", "[5, 6]"}},
      {"size: [4, 6]", "size: [0, 6]", {"input.resize.size[0]", "0"}},
      {"rule: exact, size: [4, 6]", "rule: short_side, size: 5", {"input.resize.size", "5", "[4, 6]"}},
      {"rule: exact, size: [4, 6]", "rule: short_side, size: 0", {"input.resize.size", "0"}},
      {"rule: exact, size: [4, 6]", "rule: short_side, size: [4, 6]", {"input.resize.size", "list of 2"}},
      {"rule: exact, size: [4, 6]", "rule: long_side, size: [6]", {"input.resize.size", "1 values"}},
      {"rule: exact, size: [4, 6]", "rule: long_side, size: 7", {"input.resize.size", "7", "[4, 6]"}},
      {"rule: exact, size: [4, 6]", "rule: long_side, size: -1", {"input.resize.size", "-1"}},
      {"rule: exact, size: [4, 6]", "rule: long_side, size: [5, 6]", {"input.resize.size", "[5, 6]", "[4, 6]"}},
      {"rule: exact, size: [4, 6]", "rule: long_side, size: [4, 0]", {"input.resize.size[1]", "0"}},
      {"pad: false", "pad: maybe", {"input.resize.pad", "maybe"}},
      {"[124, 116, 104]", "[124, 116, 256]", {"input.pad_value[2]", "256"}},
      {"type: argmax", "type: softmax", {"output.type", "softmax"}},
      {"dtype: uint8", "dtype: float32", {"output.dtype", "float32"}},
      {"shape: [1, 4, 6]", "shape: [1, 4, 7]", {"output.shape"}},
      {"format: onnx", "format: pb", {"models[0].format", "pb"}},
      {"batch: 4", "batch: 0", {"models[1].batch"}},
      {"a.onnx, batch: 1, sha256: aa", "a.onnx, batch: 1, sha256: xy", {"models[0].sha256", "xyaa"}},
      {"file: a.onnx", "file: ../a.onnx", {"models[0].file", "'../a.onnx'", "relative"}},
      {"models:", "modules:", {"models", "missing"}},
      {"input:\n", "input: [\n", {"YAML"}},
  };
  for (const auto& c : cases) {
    const std::string text = Replace(c.from, c.to);
    CHECK_THROWS(UserError, Parse(text), "dir/deploy.yaml");
    check::Throws<UserError>(__FILE__, __LINE__, c.words, [&] { Parse(text); });
  }
  CHECK_EQ(Parse("# a comment\n\n---\n" + kManifest + "...\n# another\n").model_name, "fast_scnn");
  CHECK_THROWS(UserError, Parse(kManifest + "...\nmore: text\n"), "nothing behind it");
  // The third one is what YAML::LoadAll of yaml-cpp 0.7 never gets to the end of.
  for (const char* text : {"", "[]", "- 1\n, - rM- 1 - r# =\nM  m", "just text", "a: &x [*x]", "\t", "{", "\x01\xff"}) {
    CHECK_THROWS(UserError, Parse(text), "dir/deploy.yaml");
  }
}

TEST(OneModelFileIsKept) {
  const TemporaryFolder folder;
  const auto keep = [&](const fs::path& file) {
    Manifest manifest = ParseManifest(kManifest, folder.path() / "deploy.yaml");
    const size_t before = manifest.models.size();
    CHECK(before > 1);
    SelectModel(file, &manifest);
    CHECK_EQ(manifest.models.size(), size_t{1});
    return manifest.models[0].path.filename().string();
  };
  const Manifest whole = ParseManifest(kManifest, folder.path() / "deploy.yaml");
  for (const ModelFile& model : whole.models) {
    const std::string name = model.path.filename().string();
    CHECK_EQ(keep(model.path), name);                                    // as a path
    CHECK_EQ(keep(folder.path() / "x" / ".." / name), name);             // as another path
    CHECK_EQ(keep(model.path.lexically_relative(folder.path())), name);  // beside the manifest
    CHECK_EQ(keep(fs::relative(model.path, fs::current_path())), name);  // from where the program runs
  }
  CHECK_THROWS(UserError, keep("other.om"), "--model other.om", "not listed", "deploy.yaml",
               whole.models[0].path.filename().string().c_str());
  CHECK_THROWS(UserError, keep(""), "not listed");
}

TEST(OtherResizeRulesAndLayouts) {
  const Manifest manifest =
      Parse(Replace("rule: exact, size: [4, 6], pad: false", "rule: short_side, size: 4, pad: true"));
  CHECK(manifest.input.resize.rule == ResizeSpec::Rule::kShortSide);
  CHECK_EQ(manifest.input.resize.side, 4);
  CHECK(manifest.input.resize.pad);
  CHECK(Parse(Replace("rule: exact, size: [4, 6], pad: false", "rule: none, pad: false")).input.resize.rule ==
        ResizeSpec::Rule::kNone);
  CHECK_EQ(Parse(Replace("rule: exact, size: [4, 6]", "rule: long_side, size: 6")).input.resize.side, 6);
  const ResizeSpec box = Parse(Replace("rule: exact, size: [4, 6]", "rule: long_side, size: [3, 6]")).input.resize;
  CHECK(box.rule == ResizeSpec::Rule::kLongSide && box.side == 0 && box.height == 3 && box.width == 6);
}

// The first pixel that is padding, in x and y; the image is all 9.
cv::Size SizeAfterResize(const char* resize, const cv::Size& size) {
  const InputSpec input = Parse(Replace("rule: exact, size: [4, 6], pad: false", resize)).input;
  std::vector<float> tensor(72);
  Preprocessor(input).Run(cv::Mat(size, CV_8UC3, cv::Scalar::all(9)), "x.png",
                          reinterpret_cast<uint8_t*>(tensor.data()));
  const auto is_image = [&](int x, int y) { return std::abs(tensor[y * 6 + x] - (9 - 123.675) / 58.395) < 1e-4; };
  cv::Size found;
  while (found.width < 6 && is_image(found.width, 0)) ++found.width;
  while (found.height < 4 && is_image(0, found.height)) ++found.height;
  return found;
}

TEST(LetterboxesFitTheirBox) {
  CHECK_EQ(SizeAfterResize("rule: long_side, size: [4, 6], pad: true", {30, 30}), cv::Size(4, 4));
  CHECK_EQ(SizeAfterResize("rule: long_side, size: [4, 6], pad: true", {60, 20}), cv::Size(6, 2));
  CHECK_EQ(SizeAfterResize("rule: long_side, size: [3, 6], pad: true", {10, 30}), cv::Size(1, 3));
  CHECK_EQ(SizeAfterResize("rule: long_side, size: [4, 6], pad: true", {3000, 2}), cv::Size(6, 1));  // never 0
  CHECK_EQ(SizeAfterResize("rule: long_side, size: 6, pad: true", {3000, 2}), cv::Size(6, 1));
  CHECK_EQ(SizeAfterResize("rule: short_side, size: 2, pad: true", {30, 10}), cv::Size(6, 2));
}

TEST(SampleNames) {
  CHECK_EQ(SampleName("a/aachen_000000_000019_leftImg8bit.png"), "aachen_000000_000019");
  CHECK_EQ(SampleName("2007_000033.jpg"), "2007_000033");
  CHECK_EQ(SampleName("_leftImg8bit.png"), "_leftImg8bit");
  CHECK_EQ(SampleName("a.b.png"), "a.b");
}

TEST(InputsAreListedInOrder) {
  const TemporaryFolder folder;
  for (const char* name : {"b/2.PNG", "a/3.jpeg", "a/1.png", "notes.txt", ".hidden/4.png", "a/.5.png"}) {
    folder.Write(name);
  }
  fs::create_directory_symlink(folder.path(), folder.path() / "a" / "loop");
  const ImageSource source = ListInputs(folder.path());
  CHECK(!source.bins);
  CHECK_EQ(source.items.size(), size_t{3});
  CHECK_EQ(source.items[0].name, "1");
  CHECK_EQ(source.items[1].name, "3");
  CHECK_EQ(source.items[2].name, "2");
}

TEST(EarlierResultsAreNoInput) {
  const TemporaryFolder folder;
  for (const char* name : {"a.png", "out/b.png", "out/below/c.png"}) folder.Write(name);
  fs::create_directory_symlink(folder.path() / "out", folder.path() / "again");
  CHECK_EQ(ListInputs(folder.path(), folder.path() / "out").items.size(), size_t{1});
  CHECK_EQ(ListInputs(folder.path(), folder.path() / "new").items.size(), size_t{3});
}

TEST(BinsFollowFilesTxt) {
  const TemporaryFolder folder;
  folder.Write("a.bin");
  folder.Write("b.bin");
  CHECK_EQ(ListInputs(folder.path()).items[0].name, "a");
  folder.Write("files.txt", "b\r\n\na\nmissing\n");
  const ImageSource source = ListInputs(folder.path());
  CHECK(source.bins);
  CHECK_EQ(source.items.size(), size_t{3});
  CHECK_EQ(source.items[0].name, "b");
  CHECK_EQ(source.items[2].path, folder.path() / "missing.bin");
  folder.Write("files.txt", "a\nb\na\n");
  CHECK_THROWS(UserError, ListInputs(folder.path()), "'a'", "rename");
  for (const char* bad : {"../a", "x/a", ".", "..", "x\\a", "c:a", "x\x7f"}) {
    folder.Write("files.txt", bad);
    CHECK_THROWS(UserError, ListInputs(folder.path()), "files.txt:1", bad);
  }
  folder.Write("files.txt", "a");
  folder.Write("c.png");
  CHECK_THROWS(UserError, ListInputs(folder.path()), "both images and files.txt");
}

TEST(BadInputsAreRefused) {
  const TemporaryFolder folder;
  CHECK_THROWS(UserError, ListInputs(folder.path()), "no images");
  CHECK_THROWS(UserError, ListInputs(folder.path() / "nowhere"), "no such file");
  CHECK_THROWS(UserError, ListInputs(folder.Write("a.txt")), "neither");
  folder.Write("x/a.png");
  folder.Write("y/a.jpg");
  CHECK_THROWS(UserError, ListInputs(folder.path()), "x/a.png", "y/a.jpg", "'a'");
}

InputSpec SmallInput() { return Parse(kManifest).input; }

TEST(PreprocessNormalisesIntoPlanes) {
  cv::Mat image(4, 6, CV_8UC3);
  for (int i = 0; i < 72; ++i) image.data[i] = static_cast<uint8_t>(i * 3);
  const InputSpec input = SmallInput();
  std::vector<float> tensor(72);
  Preprocessor(input).Run(image, "x.png", reinterpret_cast<uint8_t*>(tensor.data()));
  for (int c = 0; c < 3; ++c) {
    for (int i = 0; i < 24; ++i) {
      const double expected = (image.data[3 * i + 2 - c] - input.mean[c]) / input.std[c];  // image is BGR
      CHECK(std::abs(tensor[static_cast<size_t>(c * 24 + i)] - expected) < 1e-6);
    }
  }
}

TEST(PreprocessGivesRawPixelsAndHalves) {
  cv::Mat image(4, 6, CV_8UC3);
  for (int i = 0; i < 72; ++i) image.data[i] = static_cast<uint8_t>(i);
  InputSpec input = SmallInput();
  input.layout = Layout::kNhwc;
  input.dtype = DType::kUint8;
  input.normalize_on_host = false;
  std::vector<uint8_t> raw(72);
  Preprocessor(input).Run(image, "x.png", raw.data());
  CHECK(raw[0] == 2 && raw[1] == 1 && raw[2] == 0 && raw[71] == 69);
  input.bgr = true;
  Preprocessor(input).Run(image, "x.png", raw.data());
  CHECK(std::memcmp(raw.data(), image.data, 72) == 0);
  input = SmallInput();
  input.dtype = DType::kFloat16;
  std::vector<uint16_t> halves(72);
  Preprocessor(input).Run(image, "x.png", reinterpret_cast<uint8_t*>(halves.data()));
  CHECK_EQ(halves[0], HalfOf(static_cast<float>((2 - 123.675) / 58.395)));
}

TEST(PreprocessPadsBottomAndRight) {
  InputSpec input = SmallInput();
  input.resize = {};
  input.dtype = DType::kUint8;
  input.normalize_on_host = false;
  const cv::Mat image(3, 5, CV_8UC3, cv::Scalar(9, 9, 9));
  std::vector<uint8_t> planes(72);
  CHECK_THROWS(ItemError, Preprocessor(input).Run(image, "x.png", planes.data()), "x.png", "3x5", "4x6", "pad");
  input.resize.pad = true;
  Preprocessor(input).Run(image, "x.png", planes.data());
  CHECK(planes[0] == 9 && planes[5] == 124 && planes[23] == 124 && planes[24 + 18] == 116 && planes[48 + 5] == 104);
  input.bgr = true;  // pad_value is in the tensor's order, so the planes stay
  Preprocessor(input).Run(image, "x.png", planes.data());
  CHECK(planes[5] == 124 && planes[48 + 5] == 104);
  const cv::Mat large(5, 6, CV_8UC3);
  CHECK_THROWS(ItemError, Preprocessor(input).Run(large, "x.png", planes.data()), "5x6", "larger");
}

TEST(DamagedImagesAreRefused) {
  cv::Mat image(64, 64, CV_8UC3);
  cv::randu(image, 0, 256);
  for (const char* extension : {".png", ".jpg", ".bmp", ".webp", ".tiff"}) {
    std::vector<uint8_t> bytes;
    CHECK(cv::imencode(extension, image, bytes));
    CHECK_EQ(DecodeImage(bytes, "x").rows, 64);
    bytes.resize(bytes.size() / 2);
    CHECK_THROWS(ItemError, DecodeImage(bytes, "dir/x.png"), "dir/x.png");
  }
  CHECK_THROWS(ItemError, DecodeImage({}, "x.png"), "0 bytes");
  CHECK_THROWS(ItemError, DecodeImage(std::vector<uint8_t>(100, 'a'), "x.png"), "100 bytes");
  CHECK_THROWS(ItemError, DecodeImage({0xff, 0xd8}, "x.jpg"), "x.jpg");
}

TEST(ImagesOfOtherKindsBecomeColour) {
  for (const int type : {CV_8UC1, CV_8UC4, CV_16UC1, CV_16UC3, CV_16UC4}) {
    for (const char* extension : {".png", ".tiff"}) {
      const int scale = CV_MAT_DEPTH(type) == CV_16U ? 257 : 1;
      std::vector<uint8_t> bytes;
      CHECK(cv::imencode(extension, cv::Mat(4, 6, type, cv::Scalar(7, 8, 9, 10) * scale), bytes));
      const cv::Mat image = DecodeImage(bytes, "x");
      CHECK_EQ(image.type(), CV_8UC3);
      const cv::Vec3b expected = CV_MAT_CN(type) == 1 ? cv::Vec3b(7, 7, 7) : cv::Vec3b(7, 8, 9);
      CHECK(image.at<cv::Vec3b>(3, 5) == expected);
    }
  }
  std::vector<uint8_t> bytes;
  CHECK(cv::imencode(".tiff", cv::Mat(4, 4, CV_32FC1, cv::Scalar::all(7)), bytes));
  CHECK_THROWS(ItemError, DecodeImage(bytes, "x.tif"), "x.tif", "no known range, 32-bit");
}

TEST(ImagesAreTurnedByTheirOrientation) {
  std::vector<uint8_t> jpeg;
  cv::Mat image(16, 32, CV_8UC3, cv::Scalar::all(0));
  image.colRange(16, 32) = cv::Scalar::all(255);  // white on the right
  CHECK(cv::imencode(".jpg", image, jpeg));
  for (uint8_t orientation = 0; orientation <= 9; ++orientation) {
    const std::vector<uint8_t> exif = {0xff, 0xe1, 0, 34, 'E', 'x',         'i', 'f', 0,    0,    'M', 'M',
                                       0,    42,   0, 0,  0,   8,           0,   1,   0x01, 0x12, 0,   3,
                                       0,    0,    0, 1,  0,   orientation, 0,   0,   0,    0,    0,   0};
    std::vector<uint8_t> bytes = jpeg;
    bytes.insert(bytes.begin() + 2, exif.begin(), exif.end());
    const cv::Mat turned = DecodeImage(bytes, "x.jpg");
    const bool exchanged = orientation >= 5 && orientation <= 8;
    CHECK_EQ(turned.rows, exchanged ? 32 : 16);
    const bool white_first =
        orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;  // on the left or the top
    CHECK_EQ(turned.at<cv::Vec3b>(0, 0)[0] > 127, white_first);
  }
}

TEST(OtherFormatsAreRefused) {
  for (const char* extension : {".ppm", ".jp2", ".ras"}) {
    std::vector<uint8_t> bytes;
    CHECK(cv::imencode(extension, cv::Mat(64, 64, CV_8UC3, cv::Scalar::all(7)), bytes));
    CHECK_THROWS(ItemError, DecodeImage(bytes, "x.png"), "x.png", "no PNG, JPEG, WebP, BMP or TIFF");
  }
}

TEST(SizesAreCheckedBeforeDecoding) {
  const cv::Mat image(30, 50, CV_8UC3, cv::Scalar::all(7));
  for (const char* extension : {".png", ".jpg", ".bmp", ".webp", ".tiff"}) {
    for (const int quality : {90, 101}) {  // of WebP: over 100 is lossless, another header
      std::vector<uint8_t> bytes;
      CHECK(cv::imencode(extension, image, bytes,
                         extension == std::string(".webp") ? std::vector<int>{cv::IMWRITE_WEBP_QUALITY, quality}
                                                           : std::vector<int>{}));
      CHECK_EQ(DecodeImage(bytes, "x", 1500).cols, 50);
      CHECK_THROWS(ItemError, DecodeImage(bytes, "x", 1499), "30x50 is above the limit of 1499", "--max_pixels");
      bytes.resize(bytes.size() + 9000);  // anything may follow
      CHECK_EQ(DecodeImage(bytes, "x", 1500).cols, 50);
    }
  }
}

TEST(ThumbnailsEndMarkIsNotTheImages) {
  cv::Mat image(64, 96, CV_8UC3);
  cv::randu(image, 0, 256);
  std::vector<uint8_t> jpeg;
  std::vector<uint8_t> thumbnail;
  CHECK(cv::imencode(".jpg", image, jpeg));
  CHECK(cv::imencode(".jpg", image(cv::Rect(0, 0, 24, 16)), thumbnail));
  std::vector<uint8_t> exif = {0xff, 0xe1, 0, 0, 'E', 'x', 'i', 'f', 0, 0};
  exif.insert(exif.end(), thumbnail.begin(), thumbnail.end());
  exif[2] = static_cast<uint8_t>((exif.size() - 2) >> 8);
  exif[3] = static_cast<uint8_t>(exif.size() - 2);
  std::vector<uint8_t> whole = jpeg;
  whole.insert(whole.begin() + 2, exif.begin(), exif.end());
  const auto part = [&whole](size_t size) { return std::vector<uint8_t>(whole.begin(), whole.begin() + size); };
  CHECK_EQ(DecodeImage(whole, "x.jpg").cols, 96);
  for (const size_t keep : {whole.size() - 2, whole.size() / 2, exif.size() + 200, exif.size() + 2, exif.size() - 5}) {
    CHECK_THROWS(ItemError, DecodeImage(part(keep), "x.jpg"), "x.jpg", "truncated");
  }
  whole.insert(whole.begin() + 2, 0xff);  // a byte that fills up
  whole.resize(whole.size() + 100000);    // phones append films and depth maps
  CHECK_EQ(DecodeImage(whole, "x.jpg").cols, 96);
}

TEST(FilesAreWrittenWhole) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "r.bin";
  WriteFileAtomically(path, "hello", 5);
  WriteFileAtomically(path, "bye", 3);
  const std::vector<uint8_t> bytes = ReadFile(path, 100);
  CHECK_EQ(std::string(bytes.begin(), bytes.end()), "bye");
  CHECK_THROWS(ItemError, ReadFile(path, 2), "3 bytes", "2");
  CHECK_THROWS(UserError, LoadManifest(folder.Write("deploy.yaml", std::string((1 << 20) + 1, '#'))), "1048577 bytes");
  fs::remove(folder.path() / "deploy.yaml");
  CHECK_THROWS(ItemError, ReadFile(folder.path(), 2), "folder");
  CHECK_EQ(::mkfifo((folder.path() / "pipe").c_str(), 0600), 0);
  CHECK_THROWS(ItemError, ReadFile(folder.path() / "pipe", 2), "pipe");
  CHECK_THROWS(UserError, LoadManifest(folder.path() / "pipe"), "pipe");
  CHECK_THROWS(UserError, ListInputs(folder.path() / "pipe"), "neither");
  fs::remove(folder.path() / "pipe");
  CHECK_THROWS(ItemError, ReadFile("/dev/zero", 2), "device");
  CHECK_THROWS(ItemError, ReadFile(folder.path() / "none", 2), "No such file");
  CHECK_THROWS(UserError, WriteFileAtomically(folder.path() / "none" / "x", "a", 1), "cannot write", "No such file");
  fs::create_directory(folder.path() / "taken");
  CHECK_THROWS(UserError, WriteFileAtomically(folder.path() / "taken", "a", 1), "cannot write");
  CHECK_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);  // no temporary file is left
}

std::string TextOf(const fs::path& path) {
  const std::vector<uint8_t> bytes = ReadFile(path, 1000);
  return std::string(bytes.begin(), bytes.end());
}

TEST(OnlyOwnFilesAreReplaced) {
  const TemporaryFolder folder;
  const fs::path out = folder.path() / "a" / "out";
  folder.Write("a/out/mine.png", "mine");
  fs::create_symlink("nowhere", out / "link.png");
  {
    OutputFolder output(out, false);
    output.Write("b.png", "1");
    output.Write("b.png", "2");
    for (const char* name : {"mine.png", "link.png"}) {
      CHECK_THROWS(UserError, output.Check(name), name, "was not written by mindseg", "--overwrite");
      CHECK_THROWS(UserError, output.Write(name, "x"), name);
    }
    CHECK_THROWS(UserError, OutputFolder(out, false), "another process writes results there");
  }
  CHECK_EQ(TextOf(out / ".mindseg-files"), "b.png\n");
  {
    OutputFolder output(out, false);
    output.Check("b.png");
    output.Write("b.png", "3");
    output.Remove("mine.png");
  }
  CHECK_EQ(TextOf(out / "b.png"), "3");
  CHECK_EQ(TextOf(out / "mine.png"), "mine");
  {
    OutputFolder output(out, true);
    output.Write("mine.png", "x");
    output.Write("link.png", "x");
    output.Remove("b.png");
  }
  CHECK_EQ(TextOf(out / "mine.png"), "x");
  CHECK(!fs::is_symlink(out / "link.png"));
  CHECK(!fs::exists(out / "nowhere"));
  CHECK(!fs::exists(out / "b.png"));
  CHECK_EQ(TextOf(out / ".mindseg-files"), "b.png\nmine.png\nlink.png\n");
}

TEST(OutputFoldersAreMadeAndLeftClean) {
  const TemporaryFolder folder;
  {
    const OutputFolder output(folder.path() / "new" / "below", false);
  }
  CHECK(fs::is_empty(folder.path() / "new" / "below"));
  const fs::path file = folder.Write("file");
  CHECK_THROWS(UserError, OutputFolder(file, false), "cannot make");
  CHECK_THROWS(UserError, OutputFolder(file / "below", false), "cannot make");
  folder.Write("target", "mine");
  folder.Write("linked/a.png");
  fs::create_symlink(folder.path() / "target", folder.path() / "linked" / ".mindseg-files");
  CHECK_THROWS(UserError, OutputFolder(folder.path() / "linked", false), "cannot write");
  CHECK_EQ(TextOf(folder.path() / "target"), "mine");
  fs::create_directory(folder.path() / "pipe");
  CHECK_EQ(::mkfifo((folder.path() / "pipe" / ".mindseg-files").c_str(), 0600), 0);
  CHECK_THROWS(UserError, OutputFolder(folder.path() / "pipe", false), "pipe");
}

TEST(TemporaryFilesOfDeadProcessesAreRemoved) {
  const TemporaryFolder folder;
  const std::string dead = "400000000";  // larger than any process number of Linux
  const std::string parent = std::to_string(::getppid());
  const std::string own = std::to_string(::getpid());
  for (const std::string& gone : {".a.png.mindseg-" + dead + ".tmp", ".b.mindseg-" + own + ".tmp.json",
                                  ".line\nbreak\xff.mindseg-" + dead + ".tmp"}) {
    folder.Write(gone);
  }
  const std::vector<std::string> kept = {".a.png.mindseg-" + parent + ".tmp",
                                         "a.png.mindseg-" + dead + ".tmp",
                                         ".a.png.tmp" + dead,
                                         ".a.mindseg-.tmp",
                                         ".a.mindseg-" + dead + ".tmpx",
                                         ".a.mindseg-99999999999999999999.tmp",
                                         "a.png"};
  for (const std::string& name : kept) folder.Write(name);
  {
    const OutputFolder output(folder.path(), false);
  }
  for (const std::string& name : kept) CHECK(fs::exists(folder.path() / name));
  CHECK_EQ(std::distance(fs::directory_iterator(folder.path()), {}), static_cast<std::ptrdiff_t>(kept.size()));
}

TEST(InputAndOutputMayNotMeet) {
  const TemporaryFolder folder;
  const fs::path photo = folder.Write("photos/city/a.png");
  const fs::path photos = folder.path() / "photos";
  fs::create_directory_symlink(photos, folder.path() / "link");
  CHECK_THROWS(UserError, CheckApart(photos, photos), "is the folder of the input", "choose another --output");
  CHECK_THROWS(UserError, CheckApart(photos, photos / ""), "is the folder of");
  CHECK_THROWS(UserError, CheckApart(photos, folder.path() / "link"), "is the folder of");
  CHECK_THROWS(UserError, CheckApart(folder.path() / "link" / "city" / "a.png", photos / "city"), "is the folder of");
  CHECK_THROWS(UserError, CheckApart(photo, photos), "lies above");
  CHECK_THROWS(UserError, CheckApart(photos, folder.path()), "lies above");
  CHECK_THROWS(UserError, CheckApart(photos, photos / "new" / ".."), "is the folder of");
  CHECK_THROWS(UserError, CheckApart(photos, "/"), "lies above");
  CheckApart(photos, photos / "new");
  CheckApart(photos, folder.path() / "photos2");
  CheckApart(photo, photos / "city" / "out");
}

TEST(NamesFromOutsideStayInside) {
  for (const char* good : {"a.onnx", "a/b.om", "a b", "..a", "a..", ".a", "\xff", "a:b/c", "ab:c"}) {
    CHECK(IsPlainName(good) == (std::string(good) != "a:b/c"));
  }
  for (const char* bad : {"", ".", "..", "/a", "a/", "a//b", "./a", "a/.", "../a", "a/../b", "a/..", "C:a", "c:/a",
                          "a\\b", "a\nb", "a\x7f"}) {
    CHECK(!IsPlainName(bad));
  }
}

TEST(Sha256IsThatOfFips180) {
  const TemporaryFolder folder;
  CHECK_EQ(Sha256OfFile(folder.Write("a", "abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK_EQ(Sha256("abc", 3), Sha256OfFile(folder.path() / "a"));
  CHECK_EQ(Sha256OfFile(folder.Write("e", "")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK_EQ(Sha256OfFile(folder.Write("m", std::string(1000000, 'a'))),
           "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(LatencyIsSummarised) {
  std::vector<double> times;
  for (int i = 200; i >= 1; --i) times.push_back(i);
  const Latency latency = Summarize(times);
  CHECK_EQ(latency.min, 1.0);
  CHECK_EQ(latency.mean, 100.5);
  CHECK_EQ(latency.median, 100.5);
  CHECK_EQ(latency.p99, 198.0);
  CHECK_EQ(Summarize({5}).p99, 5.0);
  CHECK_EQ(Summarize({}).mean, 0.0);
}

TEST(JsonIsEscapedAndKeepsItsOrder) {
  const Json json = {{"z", "a\"b\\c\n\x01"}, {"a", "\xe8\xa1\x97"}, {"m", "x\xff\xe8"}, {"n", Rounded(1.00004999)}};
  CHECK_EQ(JsonText(json),
           "{\"z\":\"a\\\"b\\\\c\\n\\u0001\",\"a\":\"\xe8\xa1\x97\","
           "\"m\":\"x\xef\xbf\xbd\xef\xbf\xbd\",\"n\":1.0}");
}

TEST(OptionsAreParsed) {
  const Options options = ParseOptions({"run", "--manifest", "m", "--input=i i", "--output", "o", "--device_id", "3",
                                        "--precision", "bf16", "--batch", "4", "--model", "b.om", "--max_pixels", "9"});
  CHECK_EQ(options.max_pixels, int64_t{9});
  CHECK(!options.overwrite);
  CHECK_EQ(options.input, "i i");
  CHECK_EQ(options.backend, "auto");
  CHECK_EQ(options.model, "b.om");
  CHECK_EQ(options.backend_options.device_id, 3);
  CHECK_EQ(options.backend_options.batch, int64_t{4});
  CHECK(options.backend_options.bf16);
  CHECK_EQ(ParseOptions({"bench", "--manifest", "m", "--batch", "4", "--batch=8"}).backend_options.batch, int64_t{8});
  for (const std::vector<std::string>& help : {std::vector<std::string>{"run", "-h"}, {"run", "--help"}}) {
    CHECK_EQ(ParseOptions(help).command, "");
    CHECK(ParseOptions(help).text.find("--threads") != std::string::npos);
  }
  CHECK(ParseOptions({"--help"}).text.find("Example: segment run") != std::string::npos);
  CHECK_EQ(ParseOptions({"--version"}).text.substr(0, 8), "segment ");
  CHECK_THROWS(UserError, ParseOptions({}), "no command");
  CHECK_THROWS(UserError, ParseOptions({"go"}), "go");
  CHECK_THROWS(UserError, ParseOptions({"run"}), "--manifest");
  CHECK_THROWS(UserError, ParseOptions({"run", "--manifest", "m", "--input", "i"}), "--output");
  CHECK_THROWS(UserError, ParseOptions({"bench", "--manifest", "m", "--input", "i"}), "--input", "bench");
  CHECK_THROWS(UserError, ParseOptions({"bench", "--manifest"}), "--manifest", "required");
  CHECK_THROWS(UserError, ParseOptions({"bench", "--manifest", "m", "--iterations", "0"}), "--iterations", "0");
  CHECK_THROWS(UserError, ParseOptions({"bench", "--manifest", "m", "--device_id", "1x"}), "--device_id", "1x");
  CHECK_THROWS(UserError, ParseOptions({"bench", "--manifest", "m", "--precision", "f16"}), "--precision", "f16");
}

TEST(MessagesAreOneLine) {
  CHECK_EQ(OneLine("a\n  b\tc\n"), "a b c");
  CHECK(OneLine(std::string(5000, 'x')).size() < 700);
}

TEST(QueueIsBoundedAndDrains) {
  BoundedQueue<int> queue(2);
  std::thread producer([&queue] {
    for (int i = 0; i < 100; ++i) queue.Push(i);
    queue.Close();
  });
  int expected = 0;
  while (const std::optional<int> value = queue.Pop()) CHECK_EQ(*value, expected++);
  producer.join();
  CHECK_EQ(expected, 100);
  CHECK(!queue.Push(1));
}

}  // namespace
}  // namespace mindseg

int main() { return check::RunAll(); }
