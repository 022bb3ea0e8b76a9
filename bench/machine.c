#include "machine.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "phases.h"

#define QUIET_LOOK_NS 200000000
#define QUIET_CORES   0.15

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif
#define ZFS_MAGIC 0x2fc12fc1

static const struct {
    unsigned long magic;
    const char *name;
    bool memory;
} file_systems[] = {
    {EXT4_SUPER_MAGIC, "ext4", false},
    {XFS_SUPER_MAGIC, "xfs", false},
    {BTRFS_SUPER_MAGIC, "btrfs", false},
    {F2FS_SUPER_MAGIC, "f2fs", false},
    {ZFS_MAGIC, "zfs", false},
    {NFS_SUPER_MAGIC, "nfs", false},
    {OVERLAYFS_SUPER_MAGIC, "overlay", false},
    {FUSE_SUPER_MAGIC, "fuse", false},
    {TMPFS_MAGIC, "tmpfs", true},
    {RAMFS_MAGIC, "ramfs", true},
    {HUGETLBFS_MAGIC, "hugetlbfs", true},
};

/* First line of a small file; "" if it cannot be read. */
static void read_line(const char *path, char *out, size_t size)
{
    out[0] = 0;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return;
    if (fgets(out, (int)size, file) == NULL)
        out[0] = 0;
    out[strcspn(out, "\n")] = 0;
    fclose(file);
}

static void look_at_processor(struct machine *machine)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && value != NULL) {
            snprintf(machine->processor, sizeof machine->processor, "%s", value + 2);
            machine->processor[strcspn(machine->processor, "\n")] = 0;
            break;
        }
    }
    if (file != NULL)
        fclose(file);
    machine->cores = sysconf(_SC_NPROCESSORS_ONLN);
    machine->memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void queue_line(dev_t device, const char *name, char *out, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/queue/%s", major(device), minor(device), name);
    if (access(path, R_OK) != 0) /* a partition: the queue is the whole device's */
        snprintf(path, sizeof path, "/sys/dev/block/%u:%u/../queue/%s", major(device), minor(device), name);
    read_line(path, out, size);
}

static void look_at_device(struct machine *machine, dev_t device)
{
    char path[64], target[256], number[32];
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u", major(device), minor(device));
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length <= 0)
        return;
    target[length] = 0;
    const char *name = strrchr(target, '/');
    snprintf(machine->device, sizeof machine->device, "%.63s", name != NULL ? name + 1 : target);
    queue_line(device, "write_cache", machine->write_cache, sizeof machine->write_cache);
    queue_line(device, "fua", machine->fua, sizeof machine->fua);
    queue_line(device, "scheduler", machine->scheduler, sizeof machine->scheduler);
    queue_line(device, "physical_block_size", number, sizeof number);
    machine->physical_block = (uint32_t)strtoul(number, NULL, 10);
    queue_line(device, "logical_block_size", number, sizeof number);
    machine->logical_block = (uint32_t)strtoul(number, NULL, 10);
}

uint64_t number_in_line(const char *line, unsigned field)
{
    for (line += strspn(line, " "); field > 0 && *line != 0; field--) {
        line += strcspn(line, " ");
        line += strspn(line, " ");
    }
    return strtoull(line, NULL, 10);
}

int64_t machine_busy_ns(void)
{
    static const unsigned fields[] = {1, 2, 3, 6, 7}; /* user, nice, system, hard and soft interrupts */
    char line[256];
    uint64_t ticks = 0;
    read_line("/proc/stat", line, sizeof line);
    for (size_t i = 0; i < array_count(fields); i++)
        ticks += number_in_line(line, fields[i]);
    return (int64_t)ticks * (1000000000 / sysconf(_SC_CLK_TCK));
}

double machine_wait_quiet(int64_t limit_ns)
{
    int64_t limit = now_ns() + limit_ns;
    for (;;) {
        int64_t busy = machine_busy_ns(), from = now_ns();
        pause_ns(QUIET_LOOK_NS);
        double cores = (double)(machine_busy_ns() - busy) / (double)(now_ns() - from);
        if (cores < QUIET_CORES || now_ns() > limit)
            return cores;
    }
}

void machine_look(struct machine *machine, const char *folder)
{
    struct utsname names;
    struct statfs fs;
    struct stat status;
    memset(machine, 0, sizeof *machine);
    if (uname(&names) == 0)
        snprintf(machine->kernel, sizeof machine->kernel, "%.32s %.64s %.32s", names.sysname, names.release,
                 names.machine);
    look_at_processor(machine);
    char *real = realpath(folder, NULL);
    snprintf(machine->folder, sizeof machine->folder, "%s", real != NULL ? real : folder);
    free(real);
    if (stat(folder, &status) == 0)
        look_at_device(machine, status.st_dev);
    bool memory = false;
    snprintf(machine->file_system, sizeof machine->file_system, "unknown");
    if (statfs(folder, &fs) == 0) {
        snprintf(machine->file_system, sizeof machine->file_system, "0x%lx", (unsigned long)fs.f_type);
        for (size_t i = 0; i < array_count(file_systems); i++)
            if ((unsigned long)fs.f_type == file_systems[i].magic) {
                snprintf(machine->file_system, sizeof machine->file_system, "%s", file_systems[i].name);
                memory = file_systems[i].memory;
            }
    }
    if (memory)
        snprintf(machine->not_a_disk, sizeof machine->not_a_disk, "%s is memory, not a disk",
                 machine->file_system);
    else if (strncmp(machine->device, "zram", 4) == 0 || strncmp(machine->device, "ram", 3) == 0)
        snprintf(machine->not_a_disk, sizeof machine->not_a_disk, "%s is memory, not a disk",
                 machine->device);
    else if (machine->device[0] == 0)
        snprintf(machine->not_a_disk, sizeof machine->not_a_disk, "no block device is known behind %s",
                 machine->file_system);
    machine->is_disk = machine->not_a_disk[0] == 0;
}
