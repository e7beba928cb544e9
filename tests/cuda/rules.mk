# The emulated CUDA toolchain: the .cu files compiled by g++ for the CPU, with the runtime in tests/cuda/, in three
# flavours: plain, with ASan and UBSan, and checked (gcc's calls of ThreadSanitizer, answered by tests/cuda/checker.cc).
ifeq ($(origin CXX),default)
CXX := g++
endif

EMULATED_RUNTIME := $(filter-out tests/cuda/test_%,$(wildcard tests/cuda/*.cc))
EMULATED_KERNELS := $(wildcard gpu/cuda/*.cu)
EMULATED_TESTS := $(wildcard tests/cuda/test_*.cu)

EMULATED_FLAGS = -std=c++17 -Itests/cuda/include -I. -Wall -Wextra -Wshadow -Werror $(CFLAGS) -fPIC \
	-fvisibility=hidden -fno-math-errno -pthread
# nvcc knows #pragma unroll, and takes no two types for different memory
EMULATED_CU_FLAGS = -x c++ -Wno-unknown-pragmas -fno-strict-aliasing
# copies stay calls, which objcopy turns to the checker
EMULATED_COPIES := memcpy memmove memset
EMULATED_TSAN := -fsanitize=thread --param tsan-instrument-func-entry-exit=0 $(EMULATED_COPIES:%=-fno-builtin-%)
EMULATED_LINK = -shared -Wl,-z,defs $(LDFLAGS)

emulated_objects = $(EMULATED_RUNTIME:%.cc=$(BUILD)/$(1)/%.o)
emulated_test_objects = $(EMULATED_TESTS:%.cu=$(BUILD)/$(1)/%.o) $(call emulated_objects,$(1))

$(BUILD)/emulated/%.o: %.cc tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,C++ $<)
	$(Q)$(CXX) $(EMULATED_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/emulated/%.o: %.cu tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,CUDA $<)
	$(Q)$(CXX) $(EMULATED_FLAGS) $(EMULATED_CU_FLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/emulated-asan/%.o: %.cc tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,ASAN $<)
	$(Q)$(CXX) $(EMULATED_FLAGS) $(SANITIZE) -MMD -MP -c -o $@ $<
$(BUILD)/emulated-asan/%.o: %.cu tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,ASAN $<)
	$(Q)$(CXX) $(EMULATED_FLAGS) $(EMULATED_CU_FLAGS) $(SANITIZE) -MMD -MP -c -o $@ $<

$(BUILD)/emulated-checked/%.o: %.cc tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,CHECK $<)
	$(Q)$(CXX) $(EMULATED_FLAGS) -DEMULATED_CHECKED -MMD -MP -c -o $@ $<
$(BUILD)/emulated-checked/%.o: %.cu tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,CHECK $<)
	$(Q)$(CXX) $(EMULATED_FLAGS) $(EMULATED_CU_FLAGS) $(EMULATED_TSAN) -DEMULATED_CHECKED -MMD -MP -c -o $@ $<
	$(Q)objcopy $(foreach name,$(EMULATED_COPIES),--redefine-sym $(name)=emulated_$(name)) $@

# multiplying is most of what a test waits for
$(foreach file,cublas fragments,$(BUILD)/emulated/tests/cuda/$(file).o $(BUILD)/emulated-checked/tests/cuda/$(file).o): \
	EMULATED_FLAGS += -O3

$(BUILD)/emulated/libengram_cuda.so: $(EMULATED_KERNELS:%.cu=$(BUILD)/emulated/%.o) $(call emulated_objects,emulated)
	$(call say,LINK $@)
	$(Q)$(CXX) $(EMULATED_LINK) -pthread -o $@ $^ -lm
$(BUILD)/emulated-asan/libengram_cuda.so: $(EMULATED_KERNELS:%.cu=$(BUILD)/emulated-asan/%.o) \
		$(call emulated_objects,emulated-asan)
	$(call say,LINK $@)
	$(Q)$(CXX) $(SANITIZE) $(EMULATED_LINK) -pthread -o $@ $^ -lm
# never with -fsanitize=thread: the calls are ours
$(BUILD)/emulated-checked/libengram_cuda.so: $(EMULATED_KERNELS:%.cu=$(BUILD)/emulated-checked/%.o) \
		$(call emulated_objects,emulated-checked)
	$(call say,LINK $@)
	$(Q)$(CXX) $(EMULATED_LINK) -pthread -o $@ $^ -lm

# ---- the tests: in each flavour's folder, beside the plug-in ----

EMULATED_SUITE := test_backend test_backend_keys test_backend_streams
SUITE_SOURCES := base/error.c base/log.c base/buffer.c base/clock.c base/cgroup.c base/utf8.c gpu/plugin.c gpu/backend.c
SUITE_FLAGS = -DSUITE_PLUGIN='"libengram_cuda.so"' $(if $(findstring _late,$@),-DSUITE_LATE)

# two rules: of one with two patterns make takes it that both files are made at once
$(BUILD)/obj/suite/%.o: tests/unit/%.c Makefile tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(SUITE_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/suite/%_late.o: tests/unit/%.c Makefile tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(SUITE_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/asan/suite/%.o: tests/unit/%.c Makefile tests/cuda/rules.mk
	@mkdir -p $(@D)
	$(call say,ASAN $<)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(SANITIZE) $(SUITE_FLAGS) -MMD -MP -c -o $@ $<

emulated_programs = $(addprefix $(BUILD)/$(1)/,$(EMULATED_SUITE) test_group test_emulation)
EMULATED_PROGRAMS := $(call emulated_programs,emulated-checked) $(call emulated_programs,emulated-asan) \
	$(EMULATED_SUITE:%=$(BUILD)/emulated-checked/%_late)

$(EMULATED_SUITE:%=$(BUILD)/emulated-checked/%) $(EMULATED_SUITE:%=$(BUILD)/emulated-checked/%_late): \
		$(BUILD)/emulated-checked/%: $(BUILD)/obj/suite/%.o $(SUITE_SOURCES:%.c=$(BUILD)/obj/%.o) \
		| $(BUILD)/emulated-checked/libengram_cuda.so
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ -lcmocka -lm
$(EMULATED_SUITE:%=$(BUILD)/emulated-asan/%): $(BUILD)/emulated-asan/%: $(BUILD)/asan/suite/%.o \
		$(SUITE_SOURCES:%.c=$(BUILD)/asan/%.o) | $(BUILD)/emulated-asan/libengram_cuda.so
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(SANITIZE) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ -lcmocka -lm

$(BUILD)/emulated-checked/test_group: $(BUILD)/obj/tests/cuda/test_group.o $(SUITE_SOURCES:%.c=$(BUILD)/obj/%.o) \
		| $(BUILD)/emulated-checked/libengram_cuda.so
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ -lcmocka -lm
$(BUILD)/emulated-asan/test_group: $(BUILD)/asan/tests/cuda/test_group.o $(SUITE_SOURCES:%.c=$(BUILD)/asan/%.o) \
		| $(BUILD)/emulated-asan/libengram_cuda.so
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(SANITIZE) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ -lcmocka -lm

$(BUILD)/emulated-checked/test_emulation: $(call emulated_test_objects,emulated-checked)
	$(call say,LINK $@)
	$(Q)$(CXX) $(LDFLAGS) -pthread -o $@ $^ -lcmocka -lm
$(BUILD)/emulated-asan/test_emulation: $(call emulated_test_objects,emulated-asan)
	$(call say,LINK $@)
	$(Q)$(CXX) $(SANITIZE) $(LDFLAGS) -pthread -o $@ $^ -lcmocka -lm

# the program itself with an emulated GPU: it looks for the plug-in beside itself
$(BUILD)/emulated/engram: $(BUILD)/engram | $(BUILD)/emulated/libengram_cuda.so
	$(Q)cp $< $@

# whether the benchmark for a machine with a GPU runs at all
$(BUILD)/emulated/gpu_bench: $(BUILD)/emulated/tests/cuda/check/gpu_bench.o $(SUITE_SOURCES:%.c=$(BUILD)/obj/%.o) \
		$(call emulated_objects,emulated) | $(BUILD)/emulated/libengram_cuda.so
	$(call say,LINK $@)
	$(Q)$(CXX) $(LDFLAGS) -pthread -o $@ $^ -lm

.PHONY: emulated
emulated: $(EMULATED_PROGRAMS) $(BUILD)/emulated/engram $(BUILD)/emulated/gpu_bench ## build the CUDA plug-in for the CPU, and its tests

# ---- what gpu-check.sh builds, by nvcc and gcc ----

CHECK := $(BUILD)/gpu-check
check_objects = $(SUITE_SOURCES:%.c=$(CHECK)/obj/%.o)
$(CHECK)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -Itests/cuda/check -std=c17 $(CFLAGS) -pthread $(if $(findstring tests/unit,$<),$(SUITE_FLAGS)) \
		-MMD -MP -c -o $@ $<
$(CHECK)/%: $(CHECK)/obj/tests/unit/%.o $(check_objects)
	$(Q)$(CC) -pthread -o $@ $^ -lm -ldl
$(CHECK)/gpu_bench: tests/cuda/check/gpu_bench.cu $(check_objects) $(BUILD)/cuda.mk
	$(Q)$(NVCC) $(subst -Xptxas -v,,$(NVCC_FLAGS)) -c -o $(CHECK)/obj/gpu_bench.o $<
	$(Q)$(CXX) -pthread -o $@ $(CHECK)/obj/gpu_bench.o $(check_objects) $(CUDA_LDFLAGS) -lcudart_static -lm -ldl -lrt
.PHONY: gpu-check-build
gpu-check-build: $(BUILD)/libengram_cuda.so $(CHECK)/gpu_bench $(EMULATED_SUITE:%=$(CHECK)/%)
