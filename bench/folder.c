#include "folder.h"

#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

int folder_make(struct folder *folder, const char *parent, struct error *err)
{
    memset(folder, 0, sizeof *folder);
    char *real = realpath(parent, NULL);
    if (real == NULL)
        return error_set(err, -errno, "%s: %s; give an existing folder with --dir", parent, strerror(errno));
    int length = snprintf(folder->path, sizeof folder->path - 64, "%s/walrus-bench-XXXXXX", real);
    free(real);
    if (length < 0 || (size_t)length >= sizeof folder->path - 64) {
        folder->path[0] = 0;
        return error_set(err, -ENAMETOOLONG, "%s: the path is too long", parent);
    }
    if (mkdtemp(folder->path) == NULL) {
        int code = -errno;
        folder->path[0] = 0;
        return error_set(err, code, "cannot make a folder in %s: %s; give another one with --dir", parent,
                         strerror(-code));
    }
    const char *temporary = getenv("TMPDIR");
    if (temporary == NULL || temporary[0] != '/' || strlen(temporary) > 32)
        temporary = "/tmp";
    snprintf(folder->socket_folder, sizeof folder->socket_folder, "%s/walrus-bench-XXXXXX", temporary);
    if (mkdtemp(folder->socket_folder) == NULL) {
        int code = -errno;
        folder->socket_folder[0] = 0;
        folder_remove(folder);
        return error_set(err, code, "cannot make a folder for the socket in %s: %s", temporary,
                         strerror(-code));
    }
    snprintf(folder->socket, sizeof folder->socket, "%s/walrus.sock", folder->socket_folder);
    return 0;
}

void folder_join(const struct folder *folder, const char *name, char *out, size_t size)
{
    int length = snprintf(out, size, "%s/%s", folder->path, name);
    check_bug(length >= 0 && (size_t)length < size);
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)kind;
    (void)place;
    (void)remove(path); /* what cannot be removed stays: the folder then stays too and is seen */
    return 0;
}

void folder_remove_tree(const char *path)
{
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

void folder_remove(struct folder *folder)
{
    if (folder->path[0] != 0)
        folder_remove_tree(folder->path);
    if (folder->socket_folder[0] != 0)
        folder_remove_tree(folder->socket_folder);
    folder->path[0] = 0;
    folder->socket_folder[0] = 0;
}
