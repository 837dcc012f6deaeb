/* pickle.c: the pickle machine, restricted to what torch.save writes of weights and what training
 * scripts keep beside them.
 *
 * A pickle is a program for a stack machine. Opcodes and globals come from closed lists, and no
 * opcode here does more than build a tree, so that a hostile file can neither run anything nor take
 * more than memory in proportion to its size. */
#include "runtime/pickle.h"

#include <stdlib.h>
#include <string.h>

/* The pickle of a model of a thousand tensors has some 200 kB and 20,000 values. */
enum { MAX_BYTES = 16 << 20, MAX_VALUES = 1 << 20 };

/* clang-format off */
static const PickleGlobal globals[] = {
    {"collections",  "OrderedDict",          ROLE_DICT,      RAFT_OTHER, 0},
    {"torch._utils", "_rebuild_tensor_v2",   ROLE_TENSOR,    RAFT_OTHER, 0},
    {"torch._utils", "_rebuild_parameter",   ROLE_PARAMETER, RAFT_OTHER, 0},
    {"torch._utils", "_rebuild_parameter_with_state", ROLE_PARAMETER, RAFT_OTHER, 0},
    {"torch._tensor", "_rebuild_from_type_v2", ROLE_TYPED,   RAFT_OTHER, 0},
    {"torch",        "Tensor",               ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "FloatStorage",         ROLE_STORAGE,   RAFT_F32,   4},
    {"torch",        "HalfStorage",          ROLE_STORAGE,   RAFT_F16,   2},
    {"torch",        "BFloat16Storage",      ROLE_STORAGE,   RAFT_BF16,  2},
    {"torch",        "DoubleStorage",        ROLE_STORAGE,   RAFT_F64,   8},
    {"torch",        "IntStorage",           ROLE_STORAGE,   RAFT_I32,   4},
    {"torch",        "LongStorage",          ROLE_STORAGE,   RAFT_I64,   8},
    {"torch",        "ByteStorage",          ROLE_STORAGE,   RAFT_U8,    1},
    {"torch",        "CharStorage",          ROLE_STORAGE,   RAFT_I8,    1},
    {"torch",        "BoolStorage",          ROLE_STORAGE,   RAFT_BOOL,  1},
    {"torch",        "ShortStorage",         ROLE_STORAGE,   RAFT_I16,   2},
    {"torch",        "ComplexFloatStorage",  ROLE_STORAGE,   RAFT_OTHER, 8},
    {"torch",        "ComplexDoubleStorage", ROLE_STORAGE,   RAFT_OTHER, 16},
    /* beside the weights: options of the training, measures, states of optimisers; never made */
    {"argparse",     "Namespace",            ROLE_OBJECT,    RAFT_OTHER, 0},
    {"collections",  "Counter",              ROLE_OBJECT,    RAFT_OTHER, 0},
    {"collections",  "defaultdict",          ROLE_OBJECT,    RAFT_OTHER, 0},
    {"collections",  "deque",                ROLE_OBJECT,    RAFT_OTHER, 0},
    {"datetime",     "date",                 ROLE_OBJECT,    RAFT_OTHER, 0},
    {"datetime",     "datetime",             ROLE_OBJECT,    RAFT_OTHER, 0},
    {"datetime",     "timedelta",            ROLE_OBJECT,    RAFT_OTHER, 0},
    {"types",        "SimpleNamespace",      ROLE_OBJECT,    RAFT_OTHER, 0},
    {"pathlib",      "PosixPath",            ROLE_OBJECT,    RAFT_OTHER, 0},
    {"_codecs",      "encode",               ROLE_OBJECT,    RAFT_OTHER, 0},
    {"numpy",        "dtype",                ROLE_OBJECT,    RAFT_OTHER, 0},
    {"numpy",        "ndarray",              ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "device",               ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "Size",                 ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "float32",              ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "float16",              ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "bfloat16",             ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "float64",              ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "int32",                ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "int64",                ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "uint8",                ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch",        "bool",                 ROLE_OBJECT,    RAFT_OTHER, 0},
    {"torch.torch_version", "TorchVersion",  ROLE_OBJECT,    RAFT_OTHER, 0},
#define IN_TWO_MODULES(first, second, name) \
    {first,          name,                   ROLE_OBJECT,    RAFT_OTHER, 0}, \
    {second,         name,                   ROLE_OBJECT,    RAFT_OTHER, 0}
    /* Python 2 names them so, and protocol 2 does */
    IN_TWO_MODULES("builtins", "__builtin__", "set"),
    IN_TWO_MODULES("builtins", "__builtin__", "frozenset"),
    IN_TWO_MODULES("builtins", "__builtin__", "list"),
    IN_TWO_MODULES("builtins", "__builtin__", "dict"),
    IN_TWO_MODULES("builtins", "__builtin__", "int"),
    {"__builtin__",  "long",                 ROLE_OBJECT,    RAFT_OTHER, 0},
    IN_TWO_MODULES("builtins", "__builtin__", "float"),
    IN_TWO_MODULES("builtins", "__builtin__", "complex"),
    IN_TWO_MODULES("builtins", "__builtin__", "slice"),
    IN_TWO_MODULES("builtins", "__builtin__", "bytearray"),
    IN_TWO_MODULES("numpy.core.multiarray", "numpy._core.multiarray", "scalar"),
    IN_TWO_MODULES("numpy.core.multiarray", "numpy._core.multiarray", "_reconstruct"),
    IN_TWO_MODULES("numpy.core.numeric", "numpy._core.numeric", "_frombuffer"),
};
/* clang-format on */
enum { GLOBALS = sizeof globals / sizeof globals[0] };

const PickleGlobal *rt_pickle_storage(RaftDType dtype)
{
    for (int i = 0; i < GLOBALS; i++)
        if (globals[i].role == ROLE_STORAGE && globals[i].dtype == dtype && dtype != RAFT_OTHER)
            return &globals[i];
    return NULL;
}

/* The state of the machine. Functions return false, or NULL, after they have set `status`. */
typedef struct Machine {
    const char *path;
    const uint8_t *data;
    size_t size, position, base;
    size_t opcode_at;
    RtArena *arena;
    PickleList stack; /* NULL is a mark */
    PickleList memo;
    Pickle *pickle;
    uint32_t values;
    RaftStatus status;
    RaftError *error;
} Machine;

static bool refuse(Machine *machine, const char *problem)
{
    machine->status = rt_bad_file(machine->error, machine->path, machine->base + machine->opcode_at,
                                  "pickle: %s", problem);
    return false;
}

static bool no_memory(Machine *machine)
{
    machine->status = rt_no_memory(machine->error, machine->path);
    return false;
}

/* ---- lists, the stack ------------------------------------------------------------------------ */

/* Makes room for `count` more items. */
static bool reserve(Machine *machine, PickleList *list, uint32_t count)
{
    if (list->capacity - list->count >= count) return true;
    uint32_t capacity = 2 * (list->count + count);
    PickleValue **item = rt_alloc(machine->arena, capacity, sizeof *item);
    if (!item) return no_memory(machine);
    if (list->count) memcpy(item, list->item, list->count * sizeof *item);
    list->item = item;
    list->capacity = capacity;
    return true;
}

static bool append(Machine *machine, PickleList *list, PickleValue *const *items, uint32_t count)
{
    if (!reserve(machine, list, count)) return false;
    if (count) memcpy(list->item + list->count, items, count * sizeof *items);
    list->count += count;
    return true;
}

static bool push(Machine *machine, PickleValue *value)
{
    if (machine->stack.count == MAX_VALUES) return refuse(machine, "a stack of a million values");
    return append(machine, &machine->stack, &value, 1);
}

static PickleValue *new_value(Machine *machine, PickleKind kind)
{
    if (machine->values++ == MAX_VALUES) {
        refuse(machine, "more than a million values");
        return NULL;
    }
    PickleValue *value = rt_alloc(machine->arena, 1, sizeof *value);
    if (!value) {
        no_memory(machine);
        return NULL;
    }
    value->kind = kind;
    value->offset = (uint32_t)(machine->base + machine->opcode_at);
    return value;
}

/* The value `depth` below the top, or NULL; a mark is none. */
static PickleValue *peek(Machine *machine, uint32_t depth)
{
    PickleList *stack = &machine->stack;
    PickleValue *value = depth < stack->count ? stack->item[stack->count - 1 - depth] : NULL;
    if (!value) refuse(machine, "the stack holds too few values");
    return value;
}

/* How many values stand above the last mark, in *count. */
static bool count_to_mark(Machine *machine, uint32_t *count)
{
    const PickleList *stack = &machine->stack;
    for (*count = 0; *count < stack->count; ++*count)
        if (!stack->item[stack->count - 1 - *count]) return true;
    return refuse(machine, "no mark on the stack");
}

/* Moves the topmost `count` values into `list`. */
static bool pop_into(Machine *machine, PickleList *list, uint32_t count)
{
    PickleList *stack = &machine->stack;
    if (count > stack->count) return refuse(machine, "the stack holds too few values");
    if (!append(machine, list, stack->item + stack->count - count, count)) return false;
    stack->count -= count;
    return true;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static const uint8_t *take(Machine *machine, size_t count)
{
    if (count > machine->size - machine->position) {
        refuse(machine, "it ends within an operand");
        return NULL;
    }
    machine->position += count;
    return machine->data + machine->position - count;
}

/* A little-endian number of up to 8 bytes, the last of which bears the sign where `is_signed`. */
static bool take_number(Machine *machine, size_t bytes, bool is_signed, int64_t *number)
{
    const uint8_t *source = take(machine, bytes);
    if (!source) return false;
    uint64_t value = is_signed && bytes && source[bytes - 1] & 0x80 ? ~0ull : 0;
    for (size_t i = bytes; i-- > 0;) value = value << 8 | source[i];
    *number = (int64_t)value;
    return true;
}

/* ---- opcodes --------------------------------------------------------------------------------- */

static bool do_integer(Machine *machine, PickleKind kind, int64_t integer)
{
    PickleValue *value = new_value(machine, kind);
    if (!value) return false;
    value->integer = integer;
    return push(machine, value);
}

static bool do_number(Machine *machine, size_t bytes, bool is_signed)
{
    int64_t number;
    return take_number(machine, bytes, is_signed, &number) &&
           do_integer(machine, PICKLE_INTEGER, number);
}

/* What is read past: its value is not kept. */
static bool do_other(Machine *machine, size_t bytes)
{
    PickleValue *value = take(machine, bytes) ? new_value(machine, PICKLE_OTHER) : NULL;
    return value && push(machine, value);
}

static bool do_counted_other(Machine *machine, size_t length_bytes)
{
    int64_t length;
    return take_number(machine, length_bytes, false, &length) && do_other(machine, (size_t)length);
}

static bool do_long(Machine *machine)
{
    int64_t bytes;
    if (!take_number(machine, 1, false, &bytes)) return false;
    return bytes > 8 ? do_other(machine, (size_t)bytes) : do_number(machine, (size_t)bytes, true);
}

static bool do_text(Machine *machine, size_t length_bytes)
{
    int64_t length;
    const uint8_t *text;
    PickleValue *value;
    if (!take_number(machine, length_bytes, false, &length) ||
        !(text = take(machine, (size_t)length)) || !(value = new_value(machine, PICKLE_TEXT)))
        return false;
    if (memchr(text, 0, (size_t)length)) { /* no name, but bytes of a number, say */
        value->kind = PICKLE_OTHER;
        return push(machine, value);
    }
    value->text = rt_strdup(machine->arena, (const char *)text, (size_t)length);
    return value->text ? push(machine, value) : no_memory(machine);
}

/* A tuple, list or dictionary of the topmost `count` values. */
static bool do_list(Machine *machine, PickleKind kind, uint32_t count)
{
    PickleValue *value = new_value(machine, kind);
    for (uint32_t i = 0; value && i < count; i++)
        if (!peek(machine, i)) return false;
    return value && pop_into(machine, &value->list, count) && push(machine, value);
}

/* A tuple, or a frozenset, which is made in one go, too. */
static bool do_marked_list(Machine *machine, PickleKind kind)
{
    uint32_t count;
    if (!count_to_mark(machine, &count) || !do_list(machine, kind, count)) return false;
    PickleList *stack = &machine->stack;
    stack->item[stack->count - 2] = stack->item[stack->count - 1]; /* in the mark's place */
    stack->count--;
    return true;
}

/* A tuple that holds itself is made twice, and the second one dropped again. */
static bool do_pop(Machine *machine)
{
    if (!peek(machine, 0)) return false;
    machine->stack.count--;
    return true;
}

static bool do_pop_marked(Machine *machine)
{
    uint32_t count;
    if (!count_to_mark(machine, &count)) return false;
    machine->stack.count -= count + 1;
    return true;
}

/* A call of a class whose objects are of no interest. */
static bool is_object(const PickleValue *value)
{
    return value->kind == PICKLE_CALL && value->list.item[0]->global->role == ROLE_OBJECT;
}

/* Adds the topmost `count` values, above a mark or not, to the list or dictionary below them. */
static bool do_add(Machine *machine, PickleKind kind, uint32_t count, bool marked)
{
    for (uint32_t i = 0; i < count; i++)
        if (!peek(machine, i)) return false;
    PickleValue *target = peek(machine, count + marked);
    if (!target) return false;
    if (is_object(target)) {
        machine->stack.count -= count + marked;
        return true;
    }
    if (target->kind != kind || (kind == PICKLE_DICT && count % 2))
        return refuse(machine, "items for what is no list or dictionary");
    if (!pop_into(machine, &target->list, count)) return false;
    machine->stack.count -= marked;
    return true;
}

static bool do_marked_add(Machine *machine, PickleKind kind)
{
    uint32_t count;
    return count_to_mark(machine, &count) && do_add(machine, kind, count, true);
}

static bool remember(Machine *machine, int64_t index)
{
    PickleList *memo = &machine->memo;
    PickleValue *value = peek(machine, 0);
    if (!value) return false;
    /* Indices count up; so the memo stays in proportion to the values. */
    if (index > machine->values) return refuse(machine, "an index far past the others");
    if (index >= memo->count) {
        if (!reserve(machine, memo, (uint32_t)index + 1 - memo->count)) return false;
        memo->count = (uint32_t)index + 1;
    }
    memo->item[index] = value;
    return true;
}

static bool do_put(Machine *machine, size_t index_bytes)
{
    int64_t index;
    return take_number(machine, index_bytes, false, &index) && remember(machine, index);
}

static bool do_get(Machine *machine, size_t index_bytes)
{
    int64_t index;
    const PickleList *memo = &machine->memo;
    if (!take_number(machine, index_bytes, false, &index)) return false;
    if (index >= memo->count || !memo->item[index])
        return refuse(machine, "what is to be repeated was never stored");
    return push(machine, memo->item[index]);
}

/* The length of the line at the position, which is left behind it; -1 where it does not end. */
static int take_line(Machine *machine)
{
    const uint8_t *start = machine->data + machine->position;
    const uint8_t *end = memchr(start, '\n', machine->size - machine->position);
    if (!end || end - start > 1000) {
        refuse(machine, "it ends within a name");
        return -1;
    }
    machine->position += (size_t)(end - start) + 1;
    return (int)(end - start);
}

static bool push_global(Machine *machine, const char *module, int module_length, const char *name,
                        int name_length)
{
    for (int i = 0; i < GLOBALS; i++) {
        if (strlen(globals[i].module) != (size_t)module_length ||
            strlen(globals[i].name) != (size_t)name_length ||
            memcmp(globals[i].module, module, (size_t)module_length) ||
            memcmp(globals[i].name, name, (size_t)name_length))
            continue;
        PickleValue *value = new_value(machine, PICKLE_GLOBAL);
        if (value) value->global = &globals[i];
        return value && push(machine, value);
    }
    char problem[240];
    snprintf(problem, sizeof problem,
             "'%.*s.%.*s' is refused: it may run code; tensors and plain values are read (in "
             "PyTorch, save model.state_dict() alone)",
             module_length < 60 ? module_length : 60, module, name_length < 60 ? name_length : 60,
             name);
    return refuse(machine, problem);
}

static bool do_global(Machine *machine)
{
    const char *module = (const char *)machine->data + machine->position;
    int module_length = take_line(machine);
    if (module_length < 0) return false;
    const char *name = (const char *)machine->data + machine->position;
    int name_length = take_line(machine);
    return name_length >= 0 && push_global(machine, module, module_length, name, name_length);
}

/* The names stand on the stack. */
static bool do_stack_global(Machine *machine)
{
    PickleValue *name = peek(machine, 0), *module = peek(machine, 1);
    if (!name || !module) return false;
    if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT)
        return refuse(machine, "a name that is no text");
    machine->stack.count -= 2;
    return push_global(machine, module->text, (int)strlen(module->text), name->text,
                       (int)strlen(name->text));
}

/* A call is noted down, but for that of the dictionary class. */
static bool do_call(Machine *machine)
{
    PickleValue *arguments = peek(machine, 0), *function = peek(machine, 1);
    if (!arguments || !function) return false;
    if (function->kind != PICKLE_GLOBAL || arguments->kind != PICKLE_TUPLE)
        return refuse(machine, "a call of what is no function");
    if (function->global->role != ROLE_DICT) return do_list(machine, PICKLE_CALL, 2);
    if (arguments->list.count) return refuse(machine, "a dictionary with arguments");
    machine->stack.count -= 2;
    return do_list(machine, PICKLE_DICT, 0);
}

/* Another opcode for a call, by which objects are made. */
static bool do_new_object(Machine *machine)
{
    PickleValue *class = peek(machine, 1);
    if (!class) return false;
    if (class->kind != PICKLE_GLOBAL || class->global->role != ROLE_OBJECT)
        return refuse(machine, "an object of what is no class");
    return do_call(machine);
}

/* Attributes of a dictionary (state_dict has _metadata) are of no interest. */
static bool do_build(Machine *machine)
{
    PickleValue *target = peek(machine, 1);
    if (!peek(machine, 0) || !target) return false;
    if (target->kind != PICKLE_DICT && !is_object(target))
        return refuse(machine, "attributes of what is no dictionary");
    machine->stack.count--;
    return true;
}

static bool do_persistent(Machine *machine)
{
    if (!do_list(machine, PICKLE_PERSISTENT, 1)) return false;
    PickleValue *value = peek(machine, 0);
    return append(machine, &machine->pickle->persistent, &value, 1);
}

static bool do_protocol(Machine *machine)
{
    int64_t protocol;
    if (!take_number(machine, 1, false, &protocol)) return false;
    return (protocol >= 2 && protocol <= 5) || refuse(machine, "not of protocol 2, 3, 4 or 5");
}

static bool do_unknown(Machine *machine, uint8_t opcode)
{
    char problem[80];
    snprintf(problem, sizeof problem, "opcode 0x%02x, which torch.save writes for no weights",
             opcode);
    return refuse(machine, problem);
}

static bool step(Machine *machine, uint8_t opcode)
{
    /* clang-format off */
    switch (opcode) {
    case 0x80: return do_protocol(machine);
    case '(':  return push(machine, NULL);
    case 'N':  return do_list(machine, PICKLE_NONE, 0);
    case 0x88: return do_integer(machine, PICKLE_BOOL, 1);
    case 0x89: return do_integer(machine, PICKLE_BOOL, 0);
    case 'K':  return do_number(machine, 1, false);
    case 'M':  return do_number(machine, 2, false);
    case 'J':  return do_number(machine, 4, true);
    case 0x8a: return do_long(machine);
    case 'G':  return do_other(machine, 8);
    case 'U':  return do_text(machine, 1);
    case 'T':
    case 'X':  return do_text(machine, 4);
    case '0':  return do_pop(machine);
    case '1':  return do_pop_marked(machine);
    case ')':  return do_list(machine, PICKLE_TUPLE, 0);
    case 0x85: return do_list(machine, PICKLE_TUPLE, 1);
    case 0x86: return do_list(machine, PICKLE_TUPLE, 2);
    case 0x87: return do_list(machine, PICKLE_TUPLE, 3);
    case 't':  return do_marked_list(machine, PICKLE_TUPLE);
    case ']':  return do_list(machine, PICKLE_LIST, 0);
    case '}':  return do_list(machine, PICKLE_DICT, 0);
    case 'a':  return do_add(machine, PICKLE_LIST, 1, false);
    case 'e':  return do_marked_add(machine, PICKLE_LIST);
    case 's':  return do_add(machine, PICKLE_DICT, 2, false);
    case 'u':  return do_marked_add(machine, PICKLE_DICT);
    case 'q':  return do_put(machine, 1);
    case 'r':  return do_put(machine, 4);
    case 'h':  return do_get(machine, 1);
    case 'j':  return do_get(machine, 4);
    case 'c':  return do_global(machine);
    case 'R':  return do_call(machine);
    case 0x81: return do_new_object(machine);
    case 'b':  return do_build(machine);
    case 'Q':  return do_persistent(machine);
    /* protocols 3, 4 and 5 */
    case 'C':  return do_counted_other(machine, 1);
    case 'B':  return do_counted_other(machine, 4);
    case 0x8c: return do_text(machine, 1);
    case 0x8f: return do_list(machine, PICKLE_LIST, 0);
    case 0x90: return do_marked_add(machine, PICKLE_LIST);
    case 0x91: return do_marked_list(machine, PICKLE_LIST);
    case 0x93: return do_stack_global(machine);
    case 0x94: return remember(machine, machine->memo.count);
    case 0x96: return do_counted_other(machine, 8);
    case 0x95: return take(machine, 8); /* how long the next part is */
    default:   return do_unknown(machine, opcode);
    }
    /* clang-format on */
}

RaftStatus rt_pickle_read(const char *path, const uint8_t *data, size_t size, size_t base,
                          RtArena *arena, Pickle *pickle, RaftError *error)
{
    Machine machine = {.path = path, .data = data, .base = base, .arena = arena, .error = error};
    machine.size = size < MAX_BYTES ? size : MAX_BYTES;
    machine.pickle = pickle;
    *pickle = (Pickle){0};
    while (machine.position < machine.size) {
        machine.opcode_at = machine.position;
        uint8_t opcode = data[machine.position++];
        if (opcode != '.') {
            if (!step(&machine, opcode)) return machine.status;
            continue;
        }
        pickle->root = peek(&machine, 0);
        if (pickle->root && machine.stack.count != 1) refuse(&machine, "more than one result");
        pickle->size = machine.position;
        return machine.status;
    }
    machine.opcode_at = machine.position;
    refuse(&machine, machine.size < size ? "more than 16 MiB" : "it ends too early");
    return machine.status;
}
