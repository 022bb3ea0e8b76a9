/* folder.c: the user's folder: taken only if it is empty, and left as it was. */
#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "torture.h"

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    (void)remove(path); /* what cannot be removed does not keep the rest */
    return 0;
}

void folder_remove(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void folder_remove_beginning(const char *folder, const char *beginning)
{
    char path[PATH_MAX];
    DIR *directory = opendir(folder);
    if (directory == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        int length = snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (strncmp(entry->d_name, beginning, strlen(beginning)) == 0 && length > 0 &&
            (size_t)length < sizeof path)
            folder_remove(path);
    }
    closedir(directory);
}

static bool is_ours(const char *name)
{
    size_t length = strlen(name);
    static const char ending[] = ".segment";
    return strcmp(name, "walrus.store") == 0 ||
           (length > sizeof ending && strcmp(name + length - (sizeof ending - 1), ending) == 0);
}

int folder_take(const char *folder, bool *made, struct error *err)
{
    *made = mkdir(folder, 0700) == 0;
    if (*made)
        return 0;
    if (errno != EEXIST)
        return error_set(err, -errno, "cannot make %s: %s", folder, strerror(errno));
    DIR *directory = opendir(folder);
    if (directory == NULL)
        return error_set(err, -errno, "cannot read %s: %s", folder, strerror(errno));
    bool empty = true, store = false;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            strcmp(entry->d_name, "lost+found") == 0)
            continue;
        empty = false;
        store = store || is_ours(entry->d_name);
    }
    closedir(directory);
    if (store)
        return error_set(err, -ENOTEMPTY,
                         "%s holds a store: give an empty or a new folder on the same file system", folder);
    if (!empty)
        return error_set(err, -ENOTEMPTY,
                         "%s is not empty: give an empty or a new folder on the same file system", folder);
    return 0;
}
