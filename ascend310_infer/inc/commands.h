// The sub-commands; each returns the exit status or throws UserError.
#ifndef ASCEND310_INFER_INC_COMMANDS_H_
#define ASCEND310_INFER_INC_COMMANDS_H_

#include "inc/options.h"

namespace mindseg {

int RunCommand(const Options& options);
int BenchCommand(const Options& options);
int InfoCommand(const Options& options);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_COMMANDS_H_
