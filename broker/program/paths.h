/* paths.h: the two folders of walrusd and its socket. */
#ifndef WALRUS_PROGRAM_PATHS_H
#define WALRUS_PROGRAM_PATHS_H

#include "../../shared/paths.h"
#include "options.h"

struct paths {
    char data_folder[OPTION_TEXT_MAX + PATHS_INSTANCE_MAX + 2]; /* absolute; made if it was missing */
    char socket[PATHS_SOCKET_MAX + 1];
    char stat[PATHS_SOCKET_MAX + 8]; /* socket path + ".stat" */
};

/* Decides the paths and makes the folders (0700; the socket's is open to others if its mode is). */
int paths_resolve(const struct options *options, struct paths *paths, struct error *err) must_check;

/* -EADDRINUSE and words if somebody serves there; 0 if nobody does (no socket, or a stale one). Changes
 * nothing. */
int socket_probe(const char *path, struct error *err) must_check;

struct listener {
    int fd;
    uint64_t device, inode; /* of the socket file */
    int64_t made_ns;        /* inode numbers are used again */
};

/* A socket that listens on `path`, replacing a stale one. */
int socket_listen(const char *path, uint32_t mode, struct listener *out, struct error *err) must_check;

/* Removes `path` if it is still the one that socket_listen made. */
void socket_remove(const char *path, const struct listener *listener);

/* "ext4", "xfs", or what else it is: *known says whether the promises hold there. */
void file_system_of(const char *folder, char name[32], bool *known);

#endif
