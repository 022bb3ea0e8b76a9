/* folder.h: the working folder of a run: made new, on the disk that is measured, removed with everything in
 * it. */
#ifndef WALRUS_BENCH_FOLDER_H
#define WALRUS_BENCH_FOLDER_H

#include "../shared/base.h"

struct folder {
    char path[4096];        /* absolute */
    char socket[108];       /* path for a broker's socket */
    char socket_folder[64]; /* below the temporary folder: a socket's path must be short */
};

/* Makes a folder below `parent`. */
int folder_make(struct folder *folder, const char *parent, struct error *err) must_check;
/* PATH/name into `out`. */
void folder_join(const struct folder *folder, const char *name, char *out, size_t size);
/* Removes one file or folder below it, with everything in it. Never follows links, never leaves the file
 * system. */
void folder_remove_tree(const char *path);
void folder_remove(struct folder *folder);

#endif
