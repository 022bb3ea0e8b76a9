/* each_file.c: runs a fuzz target over the files of folders, without libFuzzer: what was found once is tried
 * in every build. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int try_file(const char *folder, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return -1;
    }
    static uint8_t data[1 << 20];
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    printf("%s: %zu bytes\n", path, size);
    fflush(stdout);
    LLVMFuzzerTestOneInput(data, size);
    return 0;
}

int main(int count, char **folders)
{
    unsigned files = 0;
    for (int i = 1; i < count; i++) {
        DIR *folder = opendir(folders[i]);
        if (folder == NULL) {
            perror(folders[i]);
            return 1;
        }
        for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
            if (entry->d_name[0] != '.') {
                if (try_file(folders[i], entry->d_name) != 0)
                    return 1;
                files++;
            }
        closedir(folder);
    }
    printf("%u inputs\n", files);
    return files == 0; /* nothing tried is nothing shown */
}
