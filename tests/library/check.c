/* check.c: appended to the header and the source of a library in one file, where the compiler then
 * compares the prototypes; and the types of the header must be those of the shell. */
#define SAME(type, shell_type, last)                                                               \
    _Static_assert(sizeof(type) == sizeof(shell_type) &&                                           \
                       offsetof(type, last) == offsetof(shell_type, last),                         \
                   #type)
SAME(tiny_Options, RaftShellOptions, size);
SAME(tiny_Options, RaftShellOptions, threads);
SAME(tiny_Options, RaftShellOptions, device);
SAME(tiny_Options, RaftShellOptions, stream);
SAME(tiny_Options, RaftShellOptions, weights);
SAME(tiny_Options, RaftShellOptions, weights_size);
SAME(tiny_Parameter, RaftTensorInfo, name);
SAME(tiny_Parameter, RaftTensorInfo, rank);
SAME(tiny_Parameter, RaftTensorInfo, shape);
SAME(tiny_Parameter, RaftTensorInfo, elements);
_Static_assert((int)tiny_OK == RAFT_OK && (int)tiny_INVALID == RAFT_INVALID &&
                   (int)tiny_NO_MEMORY == RAFT_NO_MEMORY && (int)tiny_BAD_FILE == RAFT_BAD_FILE &&
                   (int)tiny_NOT_READY == RAFT_NOT_READY &&
                   (int)tiny_UNSUPPORTED == RAFT_UNSUPPORTED,
               "status");
