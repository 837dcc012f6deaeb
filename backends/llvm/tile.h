/* tile.h: a register tile of a product while it is emitted; shared by product.c and fetch.c. */
#ifndef RAFTC_TILE_H
#define RAFTC_TILE_H

#include "backends/llvm/emit.h"

/* What the same tile of a later unit takes or stores of value `stored`, whose elements the map finds; or a later stage of the
 * present unit. */
typedef struct TileFetch {
    const Map *map;
    const Type *space;
    NodeId stored;
    bool to_write, here;
} TileFetch;

enum { MAX_FETCHES = 4 };

typedef struct Tile {
    Nest nest;
    int row_dim[2]; /* dims of nest that make up the rows, outer first; -1: none */
    int lane_dim;   /* likewise of the lanes; -1: none */
    Dim lanes;      /* tile of lanes where the caller walks them */
    int rows, vectors;
    LLVMValueRef sum[MAX_TILE]; /* stack slots, row by row; promoted to registers */
    int fetch_count;
    TileFetch fetch[MAX_FETCHES]; /* memory takes longer to answer than a tile */
    Affine later[MAX_AXES];       /* where the later unit begins */
    Affine turn;                  /* number of the present turn of the innermost loop */
} Tile;

/* ---- product.c ------------------------------------------------------------------------------ */

/* Coordinates of one row and one vector of the tile; the caller restores coordinate_count. */
void at_row(Tile *tile, int row);
void at_vector(Tile *tile, int vector);
/* Where the sum at the present coordinates is kept between the steps. */
LLVMValueRef address_of_sums(Emitter *e);

/* ---- fetch.c -------------------------------------------------------------------------------- */

/* Finds what the tile fetches for the same tile of a later unit. */
void find_fetches(Tile *tile);
/* All of it. */
void fetch_rows_at_once(Tile *tile);
/* The share of the present turn, of `turns`. */
void fetch_rows(Tile *tile, int64_t turns);
/* The same of the sums, so far, of the next tile along the rows. */
void fetch_sums(Tile *tile, int64_t turns);

#endif
