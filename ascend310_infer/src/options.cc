#include "inc/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "inc/error.h"

namespace mindseg {
namespace {

constexpr char kFooter[] =
    "Exit status: 0 all well, 1 error, 3 some images failed (see summary.json), 130 interrupted.\n"
    "Example: segment run --manifest deploy/deploy.yaml --input leftImg8bit/val --output result_Files";

CLI::App* AddCommand(CLI::App* app, const std::string& name, const std::string& description, Options* o) {
  CLI::App* command = app->add_subcommand(name, description);
  command->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  BackendOptions& b = o->backend_options;
  command->add_option("--manifest", o->manifest, "deploy.yaml of the exported model, or its folder")->required();
  command->add_option("--model", o->model, "Runs this one of the files that the manifest lists");
  command->add_option("--backend", o->backend, "auto, or one of those built in: " + BuiltBackendNames());
  command->add_option("--device_id", b.device_id, "Ascend device, default 0")->check(CLI::Range(0, 1023));
  command->add_option("--device", b.device, "mslite only: ascend (default), cpu, or gpu (untested)")
      ->check(CLI::IsMember({"ascend", "gpu", "cpu"}));
  command
      ->add_option_function<std::string>(
          "--precision", [&b](const std::string& name) { b.bf16 = name == "bf16"; },
          "openvino only: f32 (default) compares with training, bf16 is faster where the CPU has it")
      ->check(CLI::IsMember({"f32", "bf16"}));
  command->add_option("--batch", b.batch, "Images an inference; picks the model file, default the first one listed")
      ->check(CLI::Range(1, kLargestBatch));
  if (name != "info") {
    command->add_option("--streams", b.streams, "Inferences at once, default the backend's choice")
        ->check(CLI::Range(1, 256));
  }
  if (name != "run") command->add_flag("--json", o->json, "Prints JSON");
  return command;
}

void AddCommands(CLI::App* app, Options* o) {
  CLI::App* run = AddCommand(app, "run",
                             "Segments images (a file, a folder, a Cityscapes tree) or the .bin tensors of "
                             "preprocess.py; writes NAME.png (class ids) or NAME.bin (float32 logits) and summary.json",
                             o);
  run->add_option("--input", o->input, "Images or bins: a file or a folder")->required();
  run->add_option("--output", o->output, "Folder of the results, made if need be")->required();
  run->add_flag("--confidence", o->confidence,
                "Also writes NAME_confidence.png: 255 times the probability of each pixel's class, rounded. The model "
                "must be exported with export.confidence=true");
  run->add_flag("--overwrite", o->overwrite, "Replaces files in the output folder that this program did not write");
  run->add_option("--save", o->save,
                  "overlay: also writes NAME_overlay.png, the photograph in its own size under the classes' colours")
      ->check(CLI::IsMember({"overlay"}));
  run->add_option("--tile", o->tile,
                  "Cuts images of any size into tiles of HxW pixels, by default of the model's input size, and writes "
                  "NAME.png (class ids) in the image's own size; TIFFs are never in memory as a whole")
      ->expected(0, 1);
  run->add_option("--overlap", o->overlap, "Pixels that tiles share, default an eighth of their shorter side")
      ->needs("--tile");
  run->add_option("--max_pixels", o->max_pixels, "Refuses larger images (with --tile rows of tiles), default 268435456")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  run->add_option("--threads", o->threads, "Threads that decode and preprocess without --tile, default half the cores")
      ->check(CLI::Range(1, 256));
  CLI::App* bench = AddCommand(app, "bench", "Measures the model alone, on made-up input", o);
  bench->add_option("--iterations", o->iterations, "Inferences to measure, default 20")->check(CLI::Range(1, 1000000));
  run->footer(kFooter);
  AddCommand(app, "info", "Prints what the manifest says and what the backend makes of it", o);
}

}  // namespace

Options ParseOptions(std::vector<std::string> arguments) {
  Options options;
  CLI::App app("Runs an exported segmentation model as its deploy.yaml says. Built-in backends: " + BuiltBackendNames(),
               "segment");
  app.set_version_flag("--version", std::string("segment " SEGMENT_VERSION ", backends: ") + BuiltBackendNames());
  AddCommands(&app, &options);
  app.footer(std::string("Options of a command: segment run --help\n") + kFooter);
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
    app.parse(arguments);
  } catch (const CLI::CallForHelp&) {
    options.text = app.help();
    return options;
  } catch (const CLI::CallForVersion& version) {
    options.text = version.what() + std::string("\n");
    return options;
  } catch (const CLI::ParseError& error) {
    const std::vector<CLI::App*> chosen = app.get_subcommands();
    throw UserError(error.what() + std::string("; see segment ") + (chosen.empty() ? "" : chosen[0]->get_name() + " ") +
                    "--help");
  }
  if (app.get_subcommands().empty()) throw UserError("no command; use run, bench or info; see segment --help");
  const CLI::App* chosen = app.get_subcommands()[0];
  options.command = chosen->get_name();
  options.tiled = options.command == "run" && chosen->count("--tile") > 0;
  return options;
}

}  // namespace mindseg
