// Devices, their properties, errors, and what the environment says.
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

namespace emulated
{

enum { DRIVER_VERSION = 13000, PROCESSORS = 8, L2_BYTES = 4 << 20 };

static __thread int current;
static __thread cudaError_t last;

static bool switched_on(const char *name)
{
    const char *value = getenv(name);
    return value && strcmp(value, "0") != 0;
}

static struct settings environment_read()
{
    struct settings e = {cudaSuccess, 1, (size_t)1 << 30, switched_on("EMULATED_LATE"),
                         switched_on("EMULATED_REVERSE")};
    const char *devices = getenv("EMULATED_DEVICES"), *memory = getenv("EMULATED_MEMORY");
    if (devices && strcmp(devices, "none") == 0) {
        e.failure = cudaErrorInsufficientDriver;
    } else if (devices) {
        e.devices = atoi(devices);
        e.failure = e.devices > 0 ? cudaSuccess : cudaErrorNoDevice;
    }
    e.devices = e.failure == cudaSuccess ? e.devices : 0;
    if (e.devices > DEVICES_MAX) {
        slip("EMULATED_DEVICES: at most %d", (int)DEVICES_MAX);
    }
    if (memory) {
        e.memory = strtoull(memory, nullptr, 10);
    }
    if (e.devices) {
        memory_open(e.devices, e.memory);
    }
    return e;
}

const struct settings *environment()
{
    static const struct settings e = environment_read();
    return &e;
}

cudaError_t failed(cudaError_t error)
{
    last = error == cudaSuccess ? last : error;
    return error;
}

int device_current()
{
    return current;
}

static cudaError_t device_check(int device)
{
    const struct settings *e = environment();
    if (e->failure != cudaSuccess) {
        return failed(e->failure);
    }
    return device >= 0 && device < e->devices ? cudaSuccess : failed(cudaErrorInvalidDevice);
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorPeerAccessUnsupported, "cudaErrorPeerAccessUnsupported",
     "peer access is not supported between these two devices"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorPeerAccessAlreadyEnabled, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {cudaErrorPeerAccessNotEnabled, "cudaErrorPeerAccessNotEnabled", "peer access has not been enabled"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};

} // namespace emulated

using namespace emulated;

// ---- errors ----

const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &e : errors) {
        if (e.error == error) {
            return e.name;
        }
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (const auto &e : errors) {
        if (e.error == error) {
            return e.text;
        }
    }
    return "unrecognized error code";
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last;
}

// ---- devices ----

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = environment()->devices;
    return failed(environment()->failure);
}

cudaError_t cudaSetDevice(int device)
{
    const cudaError_t error = device_check(device);
    current = error == cudaSuccess ? device : current;
    return error;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current;
    return device_check(current);
}

cudaError_t cudaSetDeviceFlags(unsigned flags)
{
    return flags & ~0xFFU ? failed(cudaErrorInvalidValue) : device_check(current);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    const cudaError_t error = device_check(device);
    if (error != cudaSuccess) {
        return error;
    }
    *p = {};
    snprintf(p->name, sizeof p->name, "Emulated GPU");
    p->totalGlobalMem = environment()->memory;
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->regsPerBlock = 65536;
    p->warpSize = WARP;
    p->maxThreadsPerBlock = BLOCK_THREADS;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = BLOCK_THREADS;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = 9;
    p->minor = 0;
    p->multiProcessorCount = PROCESSORS;
    p->concurrentKernels = 1;
    p->pciBusID = device + 1;
    p->asyncEngineCount = 2;
    p->unifiedAddressing = 1;
    p->memoryBusWidth = 5120;
    p->l2CacheSize = L2_BYTES;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->sharedMemPerMultiprocessor = SHARED_MAX + 1024;
    p->sharedMemPerBlockOptin = SHARED_MAX;
    p->reservedSharedMemPerBlock = 1024;
    return cudaSuccess;
}

static int attribute_of(const struct cudaDeviceProp *p, enum cudaDeviceAttr attribute, bool *known)
{
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        return p->maxThreadsPerBlock;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
    case cudaDevAttrMaxBlockDimZ:
        return p->maxThreadsDim[attribute - cudaDevAttrMaxBlockDimX];
    case cudaDevAttrMaxGridDimX:
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        return p->maxGridSize[attribute - cudaDevAttrMaxGridDimX];
    case cudaDevAttrMaxSharedMemoryPerBlock:
        return (int)p->sharedMemPerBlock;
    case cudaDevAttrWarpSize:
        return p->warpSize;
    case cudaDevAttrMaxRegistersPerBlock:
        return p->regsPerBlock;
    case cudaDevAttrMultiProcessorCount:
        return p->multiProcessorCount;
    case cudaDevAttrIntegrated:
        return p->integrated;
    case cudaDevAttrConcurrentKernels:
        return p->concurrentKernels;
    case cudaDevAttrEccEnabled:
        return p->ECCEnabled;
    case cudaDevAttrPciBusId:
        return p->pciBusID;
    case cudaDevAttrPciDeviceId:
        return p->pciDeviceID;
    case cudaDevAttrPciDomainId:
        return p->pciDomainID;
    case cudaDevAttrGlobalMemoryBusWidth:
        return p->memoryBusWidth;
    case cudaDevAttrL2CacheSize:
        return p->l2CacheSize;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        return p->maxThreadsPerMultiProcessor;
    case cudaDevAttrAsyncEngineCount:
        return p->asyncEngineCount;
    case cudaDevAttrUnifiedAddressing:
        return p->unifiedAddressing;
    case cudaDevAttrComputeCapabilityMajor:
        return p->major;
    case cudaDevAttrComputeCapabilityMinor:
        return p->minor;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return (int)p->sharedMemPerMultiprocessor;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return (int)p->sharedMemPerBlockOptin;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        return p->maxBlocksPerMultiProcessor;
    case cudaDevAttrReservedSharedMemoryPerBlock:
        return (int)p->reservedSharedMemPerBlock;
    }
    *known = false;
    return 0;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp p;
    bool known = true;
    const cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess) {
        return error;
    }
    *value = attribute_of(&p, attribute, &known);
    return known ? cudaSuccess : failed(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device)
{
    const cudaError_t error = device_check(device);
    if (error != cudaSuccess) {
        return error;
    }
    const int length = snprintf(id, bytes > 0 ? (size_t)bytes : 0, "0000:%02X:00.0", device + 1);
    return length < bytes ? cudaSuccess : failed(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize(void)
{
    const cudaError_t error = device_check(current);
    if (error == cudaSuccess) {
        device_wait(current);
    }
    return error;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    const cudaError_t error = device_check(device);
    *can = 0; /* a kernel that reads another device's memory is a slip */
    return error == cudaSuccess ? device_check(peer) : error;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags)
{
    const cudaError_t error = device_check(peer);
    (void)flags;
    return error == cudaSuccess ? failed(cudaErrorPeerAccessUnsupported) : error;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = environment()->failure == cudaErrorInsufficientDriver ? 0 : DRIVER_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
