/* A libnvidia-ml.so.1 without a GPU: every call reads its answer from the file FAKE_NVML names.
 *
 * Lines are "key value". `init` and `count`; then, with the GPU's index in front: `0.uuid`, `0.name`,
 * `0.total`, `0.reserved`, `0.free` (MiB), `0.busy`, `0.milliwatts`, `0.celsius`, `0.compute` and
 * `0.graphics` (PID:MIB ..., "-" for a size the driver does not tell), and `0.error.FUNCTION CODE`,
 * or `0.error.* CODE` for every function not named. `0.field.NUMBER` is a field's value, those not
 * named are not supported; `0.pci`, `0.slowdown` (bits), `0.slowdown_c`; `driver` is its version.
 * `0.xids` are XIDs that happen as they are appended: a set tells each once, from its making on.
 * Replace the file by rename.
 * `0.display` and `0.mig` are 0 or 1; `0.level.1` is how far GPU 1 is; `0.link.0` is where a link of
 * it leads, a bus address, "-" for one that is down.
 * nvmlDeviceGetTemperatureV and the _v2 process lists are missing, as in some drivers.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7
#define TIMEOUT 10
#define XID_EVENT 8ull
#define MOST_GPUS 8
#define MIB (1024ull * 1024ull)

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory_v2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} Process;

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type;
    int error;
    unsigned long long value;
} FieldValue;
typedef struct {
    void *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} Event;
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char bus_id[32];
} Pci;
typedef struct { int told[MOST_GPUS]; } EventSet;

_Static_assert(sizeof(FieldValue) == 40, "nvmlFieldValue_t");
_Static_assert(sizeof(Event) == 32, "nvmlEventData_t");
_Static_assert(sizeof(Pci) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(Memory) == 24, "nvmlMemory_t");
_Static_assert(sizeof(Memory_v2) == 40, "nvmlMemory_v2_t");
_Static_assert(sizeof(Process) == 24, "nvmlProcessInfo_t");

/* The value of a key, copied to `value`; 0 when there is none. */
static int look_up(const char *key, char *value, size_t size)
{
    char line[1024];
    size_t length = strlen(key);
    int found = 0;
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;

    if (!file)
        return 0;
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    }
    fclose(file);
    return found;
}

static int text_of(void *device, const char *key, char *value, size_t size)
{
    char full[128];

    snprintf(full, sizeof full, "%d.%s", (int)(intptr_t)device - 1, key);
    return look_up(full, value, size);
}

static unsigned long long number_of(void *device, const char *key)
{
    char value[64];

    return text_of(device, key, value, sizeof value) ? strtoull(value, NULL, 10) : 0;
}

/* The code that this function of this GPU is to fail with. */
static int error_of(void *device, const char *function)
{
    char key[96], value[32];

    snprintf(key, sizeof key, "error.%s", function);
    if (text_of(device, key, value, sizeof value) || text_of(device, "error.*", value, sizeof value))
        return atoi(value);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    char value[32];

    (void)flags;
    return look_up("init", value, sizeof value) ? atoi(value) : SUCCESS;
}

int nvmlShutdown(void)
{
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    char value[32];

    *count = look_up("count", value, sizeof value) ? (unsigned)atoi(value) : 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    *device = (void *)(intptr_t)(index + 1);
    return error_of(*device, "HandleByIndex");
}

static int give_text(void *device, const char *function, const char *key, char *text, unsigned size)
{
    int error = error_of(device, function);

    if (error == SUCCESS && !text_of(device, key, text, size))
        return INVALID_ARGUMENT;
    return error;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned size)
{
    return give_text(device, "UUID", "uuid", text, size);
}

int nvmlDeviceGetName(void *device, char *text, unsigned size)
{
    return give_text(device, "Name", "name", text, size);
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory)
{
    memory->total = number_of(device, "total") * MIB;
    memory->free = number_of(device, "free") * MIB;
    memory->used = memory->total - memory->free;
    return error_of(device, "MemoryInfo");
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory_v2 *memory)
{
    if (memory->version != 0x02000028)
        return INVALID_ARGUMENT;
    memory->total = number_of(device, "total") * MIB;
    memory->reserved = number_of(device, "reserved") * MIB;
    memory->free = number_of(device, "free") * MIB;
    memory->used = memory->total - memory->free; /* some drivers count the reserved part in */
    return error_of(device, "MemoryInfo_v2");
}

int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates)
{
    rates->gpu = (unsigned)number_of(device, "busy");
    rates->memory = 0;
    return error_of(device, "UtilizationRates");
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts)
{
    *milliwatts = (unsigned)number_of(device, "milliwatts");
    return error_of(device, "PowerUsage");
}

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius)
{
    (void)sensor;
    *celsius = (unsigned)number_of(device, "celsius");
    return error_of(device, "Temperature");
}

/* As the driver does: without room for all of them it says how many there are. */
static int list(void *device, const char *function, const char *key, unsigned *count, Process *out)
{
    char value[900], *rest = NULL, *colon;
    unsigned found = 0, room = *count;
    int error = error_of(device, function);

    if (error != SUCCESS || !text_of(device, key, value, sizeof value))
        return *count = 0, error;
    for (char *one = strtok_r(value, " ", &rest); one; one = strtok_r(NULL, " ", &rest), found++) {
        if (!out || found >= room || !(colon = strchr(one, ':')))
            continue;
        out[found].pid = (unsigned)atoi(one);
        out[found].used = colon[1] == '-' ? ~0ull : strtoull(colon + 1, NULL, 10) * MIB;
        out[found].gpu_instance = out[found].compute_instance = ~0u;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *out)
{
    return list(device, "ComputeRunningProcesses", "compute", count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *out)
{
    return list(device, "GraphicsRunningProcesses", "graphics", count, out);
}

int nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    return look_up("driver", text, size) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetPciInfo_v3(void *device, Pci *pci)
{
    memset(pci, 0, sizeof *pci);
    if (!text_of(device, "pci", pci->bus_id, sizeof pci->bus_id))
        return NOT_SUPPORTED;
    return error_of(device, "PciInfo");
}

int nvmlDeviceGetFieldValues(void *device, int count, FieldValue *values)
{
    char key[32], value[64];

    for (int i = 0; i < count; i++) {
        snprintf(key, sizeof key, "field.%u", values[i].field);
        values[i].type = 3; /* unsigned long long */
        values[i].error = NOT_SUPPORTED;
        if (text_of(device, key, value, sizeof value)) {
            values[i].value = strtoull(value, NULL, 10);
            values[i].error = SUCCESS;
        }
    }
    return error_of(device, "FieldValues");
}

static int number_or_none(void *device, const char *function, const char *key,
                          unsigned long long *number)
{
    char value[64];

    if (!text_of(device, key, value, sizeof value))
        return NOT_SUPPORTED;
    *number = strtoull(value, NULL, 10);
    return error_of(device, function);
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons)
{
    return number_or_none(device, "ClocksEventReasons", "slowdown", reasons);
}

int nvmlDeviceGetTemperatureThreshold(void *device, unsigned which, unsigned *celsius)
{
    unsigned long long number = 0;
    int error = number_or_none(device, "TemperatureThreshold", "slowdown_c", &number);

    (void)which;
    *celsius = (unsigned)number;
    return error;
}

/* The XID at this place of a GPU's list, 0 behind its end. */
static unsigned long long xid_at(int gpu, int place)
{
    char value[900], *rest = NULL;

    if (!text_of((void *)(intptr_t)(gpu + 1), "xids", value, sizeof value))
        return 0;
    for (char *one = strtok_r(value, " ", &rest); one; one = strtok_r(NULL, " ", &rest))
        if (place-- == 0)
            return strtoull(one, NULL, 10);
    return 0;
}

int nvmlEventSetCreate(EventSet **set)
{
    *set = calloc(1, sizeof **set);
    for (int gpu = 0; gpu < MOST_GPUS; gpu++)
        (*set)->told[gpu] = -1;
    return SUCCESS;
}

int nvmlEventSetFree(EventSet *set)
{
    free(set);
    return SUCCESS;
}

int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *types)
{
    char value[8];

    *types = text_of(device, "no_events", value, sizeof value) ? 0 : XID_EVENT;
    return error_of(device, "SupportedEventTypes");
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, EventSet *set)
{
    int gpu = (int)(intptr_t)device - 1, error = error_of(device, "RegisterEvents");

    (void)types;
    if (error != SUCCESS)
        return error;
    for (set->told[gpu] = 0; xid_at(gpu, set->told[gpu]); set->told[gpu]++)
        ;
    return SUCCESS;
}

int nvmlEventSetWait_v2(EventSet *set, Event *event, unsigned timeout_ms)
{
    for (unsigned waited = 0; waited <= timeout_ms; waited += 10) {
        for (int gpu = 0; gpu < MOST_GPUS; gpu++) {
            unsigned long long xid = set->told[gpu] < 0 ? 0 : xid_at(gpu, set->told[gpu]);
            if (!xid)
                continue;
            set->told[gpu]++;
            event->device = (void *)(intptr_t)(gpu + 1);
            event->type = XID_EVENT;
            event->data = xid;
            event->gpu_instance = event->compute_instance = ~0u;
            return SUCCESS;
        }
        usleep(10000);
    }
    return TIMEOUT;
}

int nvmlDeviceGetDisplayActive(void *device, unsigned *active)
{
    unsigned long long number = 0;
    int error = number_or_none(device, "DisplayActive", "display", &number);

    *active = (unsigned)number;
    return error;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending)
{
    unsigned long long number = 0;
    int error = number_or_none(device, "MigMode", "mig", &number);

    *current = *pending = (unsigned)number;
    return error;
}

int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, unsigned *level)
{
    unsigned long long number = 0;
    char key[32];
    int error;

    snprintf(key, sizeof key, "level.%d", (int)(intptr_t)other - 1);
    error = number_or_none(one, "TopologyCommonAncestor", key, &number);
    *level = (unsigned)number;
    return error;
}

static int link_end(void *device, unsigned link, char *end, size_t size)
{
    char key[32];

    snprintf(key, sizeof key, "link.%u", link);
    return text_of(device, key, end, size) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active)
{
    char end[32];
    int error = link_end(device, link, end, sizeof end);

    *active = error == SUCCESS && end[0] != '-';
    return error;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, Pci *pci)
{
    memset(pci, 0, sizeof *pci);
    return link_end(device, link, pci->bus_id, sizeof pci->bus_id);
}
