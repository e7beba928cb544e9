# The emulated CUDA toolchain: the .cu files compiled by g++ for the CPU, with the runtime in tests/cuda/, in three
# flavours: plain, with ASan and UBSan, and checked (gcc's calls of ThreadSanitizer, answered by tests/cuda/checker.cc).
ifeq ($(origin CXX),default)
CXX := g++
endif

EMULATED_RUNTIME := $(filter-out tests/cuda/test_%,$(wildcard tests/cuda/*.cc))
EMULATED_KERNELS := $(wildcard gpu/cuda/*.cu)
EMULATED_TESTS := $(wildcard tests/cuda/test_*.cu)
EMULATED_LIBRARIES := $(foreach flavour,emulated emulated-asan emulated-checked,$(BUILD)/$(flavour)/libengram_cuda.so)
EMULATION_TESTS := $(BUILD)/tests/test_emulation $(BUILD)/tests/test_emulation_checked $(BUILD)/tests-asan/test_emulation

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

$(BUILD)/tests/test_emulation: $(call emulated_test_objects,emulated)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CXX) $(LDFLAGS) -pthread -o $@ $^ -lcmocka -lm
$(BUILD)/tests/test_emulation_checked: $(call emulated_test_objects,emulated-checked)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CXX) $(LDFLAGS) -pthread -o $@ $^ -lcmocka -lm
$(BUILD)/tests-asan/test_emulation: $(call emulated_test_objects,emulated-asan)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CXX) $(SANITIZE) $(LDFLAGS) -pthread -o $@ $^ -lcmocka -lm

.PHONY: emulated emulation-test
emulated: $(EMULATED_LIBRARIES) ## build the CUDA plug-in for the CPU, plain, with ASan, and checked
emulation-test: $(EMULATION_TESTS) ## build and run the tests of the emulated CUDA toolchain
	$(Q)set -e; for test in $^; do echo $$test; $$test; done
