// Images of any size in, class ids of their size out: one image after the other, in tiles, row of tiles after row of
// tiles. While one row is inferred, the next one is decoded. In memory are two rows of tiles, and of formats other than
// TIFF the image.
#ifndef ASCEND310_INFER_INC_TILED_RUN_H_
#define ASCEND310_INFER_INC_TILED_RUN_H_

#include "inc/pipeline.h"

namespace mindseg {

// RunPipeline with `settings.tiling`.
PipelineResult RunTiles(const ImageSource& source, const Manifest& manifest, Backend* backend, OutputFolder* output,
                        const RunSettings& settings);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_TILED_RUN_H_
