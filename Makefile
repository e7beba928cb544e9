# Engram's build. `make help` lists the targets.
BUILD ?= build
PREFIX ?= /usr/local
ifeq ($(origin CC),default)
CC := gcc
endif
VERSION := 0.1.0

ROOMS := base config record gpu gpu/cpu gpu/encoder store engine kafka consumer producer stage stage/console
LIBRARIES := rdkafka lmdb libutf8proc libxxhash yajl zlib libmicrohttpd libzip
# Debian 12 calls it msgpackc, Debian 13 msgpack-c
MSGPACK := $(shell pkg-config --exists msgpack-c && echo -lmsgpack-c || echo -lmsgpackc)
LIBS := -lrdkafka -llmdb $(MSGPACK) -ldnnl -lgomp -lutf8proc -lxxhash -lyajl -lmicrohttpd -lzip -lz -lm -lpthread

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Werror
CPPFLAGS += -I. -D_POSIX_C_SOURCE=200809L -DENGRAM_VERSION='"$(VERSION)"'
CFLAGS ?= -O2 -g
# What makes a mistake in memory hard to use; a variable of its own, so that CFLAGS=-O3 keeps it (`make HARDENING=`
# builds without). Each only where this compiler takes it: not every machine has control-flow marks, and _FORTIFY_SOURCE
# warns at -O0 and, at 3, before gcc 12.
taken = $(shell $(CC) -Werror $(CFLAGS) $(1) -include stdlib.h -x c -c -o /dev/null /dev/null 2>/dev/null && echo '$(1)')
fortify = -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=$(1)
HARDENING := -fPIE -fstack-protector-strong $(call taken,-fstack-clash-protection) $(call taken,-fcf-protection=full) \
	$(call taken,-mbranch-protection=standard) $(or $(call taken,$(call fortify,3)),$(call taken,$(call fortify,2)))
HARDENING_LINK := -pie -Wl,-z,relro,-z,now,-z,noexecstack
ALL_CFLAGS := -std=c17 $(WARNINGS) $(CFLAGS) $(HARDENING) -fno-math-errno -pthread
# -w: the plain build enforces the warnings; under sanitizers gcc loses value ranges and warns falsely;
# the sanitizers see the C library's functions by their own names, not by those of _FORTIFY_SOURCE
SANITIZE := -w -O1 -g -U_FORTIFY_SOURCE -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

ROOM_SOURCES := $(foreach room,$(ROOMS),$(wildcard $(room)/*.c))
CLI_SOURCES := $(wildcard cli/*.c)
UNIT_SOURCES := $(wildcard tests/unit/*.c)
ROOM_OBJECTS := $(ROOM_SOURCES:%.c=$(BUILD)/obj/%.o)
CLI_OBJECTS := $(CLI_SOURCES:%.c=$(BUILD)/obj/%.o)
UNIT_TESTS := $(UNIT_SOURCES:tests/unit/%.c=$(BUILD)/tests/%)
ASAN_OBJECTS := $(ROOM_SOURCES:%.c=$(BUILD)/asan/%.o)
ASAN_TESTS := $(UNIT_SOURCES:tests/unit/%.c=$(BUILD)/tests-asan/%)
# a backend for tests as a plug-in, and tests that run on it in place of the CPU's
APART_SOURCES := $(wildcard tests/backend/apart/*.c)
APART_TESTS := test_engine_apart test_tiles_apart test_encoder_apart test_encoder_dense_apart
# the same with host memory of its own
APART_TESTS += test_engine_apart_host test_tiles_apart_host
PLUGINS := libengram_apart.so libengram_other_abi.so
WRAPPED := -Wl,--wrap=backend_cpu_open
UNIT_TESTS += $(APART_TESTS:%=$(BUILD)/tests/%)
ASAN_TESTS += $(APART_TESTS:%=$(BUILD)/tests-asan/%)

# one short line a file; make V=1 prints the commands, make -s nothing
Q := $(if $(V),,@)
say = $(if $(V)$(findstring s,$(firstword -$(MAKEFLAGS))),,@printf '%-5s %s\n' $(1))

.DELETE_ON_ERROR:
.SECONDARY:

.PHONY: all
all: $(BUILD)/engram ## build build/engram (no root, no network)

$(BUILD)/engram: $(CLI_OBJECTS) $(ROOM_OBJECTS)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/obj/%.o: %.c Makefile | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/asan/%.o: %.c Makefile | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(call say,ASAN $<)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(SANITIZE) -MMD -MP -c -o $@ $<

$(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(ROOM_OBJECTS)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/tests/%_apart: $(BUILD)/obj/tests/unit/%.o $(BUILD)/obj/tests/backend/wrapped.o $(ROOM_OBJECTS)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) $(WRAPPED) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/tests/%_apart_host: $(BUILD)/obj/tests/unit/%.o $(BUILD)/obj/tests/backend/wrapped_host.o $(ROOM_OBJECTS)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) $(WRAPPED) -o $@ $^ -lcmocka $(LIBS)

# the program itself on that backend, without an option for it
$(BUILD)/tests/engram_apart: $(CLI_OBJECTS) $(BUILD)/obj/tests/backend/wrapped.o $(ROOM_OBJECTS)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) $(WRAPPED) -o $@ $^ $(LIBS)

# they look for it beside themselves
$(BUILD)/tests/engram_apart $(APART_TESTS:%=$(BUILD)/tests/%): | $(BUILD)/tests/libengram_apart.so
$(APART_TESTS:%=$(BUILD)/tests-asan/%): | $(BUILD)/tests-asan/libengram_apart.so

# -z defs: a plug-in needs nothing of the program
$(BUILD)/obj/tests/backend/apart/%.o $(BUILD)/asan/tests/backend/apart/%.o: ALL_CFLAGS += -fPIC -fvisibility=hidden
$(BUILD)/tests/libengram_apart.so: $(APART_SOURCES:%.c=$(BUILD)/obj/%.o)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) -shared -Wl,-z,defs $(LDFLAGS) -o $@ $^ -lm
$(BUILD)/tests-asan/libengram_apart.so: $(APART_SOURCES:%.c=$(BUILD)/asan/%.o)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(SANITIZE) -shared -Wl,-z,defs $(LDFLAGS) -o $@ $^ -lm
# in C++: backend.h is to compile as that too
$(BUILD)/tests/libengram_other_abi.so $(BUILD)/tests-asan/libengram_other_abi.so: tests/backend/other_abi.cc \
		gpu/backend.h base/error.h Makefile
	@mkdir -p $(@D)
	$(call say,C++ $@)
	$(Q)$(CXX) -I. $(WARNINGS) $(CFLAGS) -fPIC -shared -Wl,-z,defs $(LDFLAGS) -o $@ $<

$(BUILD)/tests/%: $(BUILD)/obj/tests/e2e/%.o $(ROOM_OBJECTS)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ $(LIBS)

# the commands themselves, under another main()
$(BUILD)/tests/command_server: $(filter-out $(BUILD)/obj/cli/engram.o,$(CLI_OBJECTS))
$(BUILD)/tests/%: $(BUILD)/obj/tests/golden/%.o $(ROOM_OBJECTS)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/tests-asan/%_apart: $(BUILD)/asan/tests/unit/%.o $(BUILD)/asan/tests/backend/wrapped.o $(ASAN_OBJECTS)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(SANITIZE) $(HARDENING_LINK) $(LDFLAGS) $(WRAPPED) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/tests-asan/%_apart_host: $(BUILD)/asan/tests/unit/%.o $(BUILD)/asan/tests/backend/wrapped_host.o $(ASAN_OBJECTS)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(SANITIZE) $(HARDENING_LINK) $(LDFLAGS) $(WRAPPED) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/tests-asan/%: $(BUILD)/asan/tests/unit/%.o $(ASAN_OBJECTS)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(SANITIZE) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/bench/encode_bench $(BUILD)/bench/live_probe: $(filter-out $(BUILD)/obj/cli/engram.o,$(CLI_OBJECTS))
$(BUILD)/bench/%: $(BUILD)/obj/tests/bench/%.o $(ROOM_OBJECTS)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(ALL_CFLAGS) $(HARDENING_LINK) $(LDFLAGS) -o $@ $^ $(LIBS)

# ---- the CUDA plug-in: tools/cuda.sh finds or fetches the toolkit and says in cuda.mk where it is ----

-include $(BUILD)/cuda.mk
CUDA_SOURCES := $(wildcard gpu/cuda/*.cu)
CUDA_OBJECTS := $(CUDA_SOURCES:%.cu=$(BUILD)/obj/%.o)
# machine code for 8.x and 9.0; later devices compile the PTX when they load it
CUDA_CODE := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
	-gencode arch=compute_90,code=compute_90
# what ptxas says of each kernel is kept beside the object, for tools/ptxas.py
NVCC_FLAGS := -O2 -std=c++17 $(CUDA_CODE) -Xptxas -v --Werror all-warnings -I. $(CUDA_CPPFLAGS) \
	-ccbin $(CXX) -Xcompiler '$(HARDENING) -fPIC -fvisibility=hidden -Wall -Wextra -Werror'

$(BUILD)/obj/gpu/cuda/%.o: gpu/cuda/%.cu Makefile $(BUILD)/cuda.mk
	@mkdir -p $(@D)
	$(call say,NVCC $<)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $< >$(@:.o=.ptxas) 2>&1 || { \
		grep -v '^ptxas info\|^ *[0-9]* bytes stack frame' $(@:.o=.ptxas) >&2; rm -f $@; exit 1; }

# of the libraries named, only those that are called are needed to load it
$(BUILD)/libengram_cuda.so: $(CUDA_OBJECTS) gpu/cuda/exports.map
	$(call say,LINK $@)
	$(Q)$(CXX) -shared -Wl,-z,defs,-z,relro,-z,now,-z,noexecstack,--as-needed -Wl,--version-script=gpu/cuda/exports.map \
		$(LDFLAGS) -o $@ $(CUDA_OBJECTS) $(CUDA_LDFLAGS) -lcudart_static -l:libcublasLt.so.13 \
		-l:libnccl.so.2 -lpthread -ldl -lrt

$(BUILD)/cuda/ptxas.md: $(CUDA_OBJECTS) tools/ptxas.py
	@mkdir -p $(@D)
	@tools/ptxas.py --nvcc $(NVCC) $(CUDA_OBJECTS:.o=.ptxas) >$@

# one line instead of a compiler's "no such file"
$(BUILD)/libraries: deps/packages-debian-12.txt
	@pkg-config --exists $(LIBRARIES) || { echo 'make: libraries are missing; `make deps` installs them' >&2; exit 1; }
	@mkdir -p $(@D) && touch $@

.PHONY: room-%
room-%: ## compile one room: make room-store
	@$(MAKE) --no-print-directory $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard $(subst -,/,$*)/*.c))

.PHONY: unit unit-asan
unit: $(UNIT_TESTS) $(PLUGINS:%=$(BUILD)/tests/%) ## build the unit tests
unit-asan: $(ASAN_TESTS) $(PLUGINS:%=$(BUILD)/tests-asan/%) ## build the unit tests with ASan and UBSan

include tests/cuda/rules.mk

# ---- fetching, running and cleaning: each is a script that can be called by itself ----

# as many jobs as CPUs, unless make was given a number
JOBS = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))
SUBMAKE = $(MAKE) --no-print-directory -s $(JOBS)
OUR_C = $(wildcard $(addsuffix /*.[ch],$(ROOMS) cli tests/unit tests/backend tests/backend/apart tests/e2e tests/golden \
	tests/bench) gpu/cpu/*.inc gpu/cuda/*.cu gpu/cuda/*.h tests/cuda/*.c tests/cuda/*.cc tests/cuda/*.cu tests/cuda/*.h \
	tests/cuda/include/*.h tests/cuda/check/*.h tests/cuda/check/*.cu)
# no command in compile_commands.json, or gcc alone takes it: its omp.h, "x86-64-v3" in __builtin_cpu_supports,
# its pragma for an instruction set
NOT_TIDY = $(wildcard $(addsuffix /*.c,tests/e2e tests/golden tests/bench)) gpu/cpu/onednn.c gpu/cpu/kernels.c \
	$(addprefix gpu/cpu/kernels_,avx2.c avx512.c amx.c) \
	$(wildcard tests/unit/test_backend*.c) tests/unit/test_kernels.c tests/cuda/test_group.c

.PHONY: deps broker model
deps: ## install the packages (root or sudo) and fetch the broker
	@tools/deps.sh
broker: ## fetch only the broker's jars into build/broker
	@tests/broker/fetch
	@tests/broker/librdkafka
model: ## fetch the default model into build/models
	@tools/model.sh

.PHONY: cuda cuda-build cuda-docs gpu-check
cuda: ## build build/libengram_cuda.so, the plug-in for GPUs, and test it without one (fetches a toolkit where none is)
	@tools/deps.sh
	@tools/model.sh
	@BUILD='$(BUILD)' tools/cuda.sh
	+@$(SUBMAKE) all $(BUILD)/libengram_cuda.so $(BUILD)/cuda/ptxas.md
	@tests/run.sh cuda
cuda-build: ## only build it
	@BUILD='$(BUILD)' tools/cuda.sh
	+@$(SUBMAKE) $(BUILD)/libengram_cuda.so
gpu-check: ## on a machine with a GPU, CUDA and gcc alone: test the plug-in there and measure it (docs/GPU.md)
	@BUILD='$(BUILD)' tests/cuda/check/gpu-check.sh
cuda-docs: ## write the kernels' resources into docs/GPU.md
	@BUILD='$(BUILD)' tools/cuda.sh
	+@$(SUBMAKE) $(BUILD)/cuda/ptxas.md
	@tools/ptxas.py --into docs/GPU.md $(BUILD)/cuda/ptxas.md

.PHONY: test test-compose golden e2e
test: ## install what is needed, build, and run all tests
	@tools/deps.sh
	@tools/model.sh
	@$(SUBMAKE) all unit unit-asan emulated
	@tests/run.sh
test-compose: ## start docker-compose.yml and test it from outside (needs a Docker engine, or root on Debian)
	@tools/deps.sh
	@tools/model.sh
	@tests/compose/run.sh
golden: all model ## run the tests that compare with references
e2e: all model broker ## run the tests on a real broker
golden e2e:
	@tests/run.sh $@

# where: $(DESTDIR)$(PREFIX); the binary finds the model beside itself, in ../share/engram/models, and the plug-in in
# ../lib/engram. That finds a fetched toolkit's libraries under its own folder, in build/ and here.
SHARE = $(DESTDIR)$(PREFIX)/share
PLUGIN = $(DESTDIR)$(PREFIX)/lib/engram
MODEL := all-MiniLM-L6-v2
.PHONY: install uninstall
install: all ## install binary, documents, and model and plug-in if they are in build/; DESTDIR, PREFIX=/usr/local
	$(Q)install -d '$(DESTDIR)$(PREFIX)/bin' $(foreach folder,docs deploy/prometheus examples,'$(SHARE)/doc/engram/$(folder)')
	$(Q)install -m 755 $(BUILD)/engram '$(DESTDIR)$(PREFIX)/bin/engram'
	$(Q)install -m 644 README.md CHANGELOG.md LICENSE '$(SHARE)/doc/engram'
	$(Q)install -m 644 docs/*.md '$(SHARE)/doc/engram/docs'
	$(Q)install -m 644 deploy/engram.service '$(SHARE)/doc/engram/deploy'
	$(Q)install -m 644 deploy/prometheus/*.yml '$(SHARE)/doc/engram/deploy/prometheus'
	$(Q)install -m 755 examples/client.py '$(SHARE)/doc/engram/examples'
	$(Q)if [ -d $(BUILD)/models/$(MODEL) ]; then \
		rm -rf '$(SHARE)/engram/models/$(MODEL)' && install -d '$(SHARE)/engram/models' && \
		cp -R --preserve=mode $(BUILD)/models/$(MODEL) '$(SHARE)/engram/models/'; \
	else \
		echo 'installed without a model: `make model` fetches it, or name one with the option model' >&2; \
	fi
	$(Q)BUILD='$(BUILD)' tools/cuda-install.sh '$(PLUGIN)'
uninstall: ## remove what `make install` installed
	$(Q)rm -f '$(DESTDIR)$(PREFIX)/bin/engram'
	$(Q)rm -rf '$(SHARE)/engram/models/$(MODEL)' '$(SHARE)/doc/engram' '$(PLUGIN)'
	$(Q)rmdir '$(SHARE)/engram/models' '$(SHARE)/engram' 2>/dev/null || true

.PHONY: demo quality bench
demo: ## install what is needed, build, and show a stage at work on a real broker
	@tools/deps.sh
	@tools/model.sh
	@$(SUBMAKE) all
	@examples/demo.py
quality: ## tune on both example sets and check their test parts against the targets in docs/QUALITY.md
	@tools/deps.sh
	@tools/model.sh
	@$(SUBMAKE) all
	@tests/quality.py
bench: ## measure speed and compare with peers (installs them, 6 GB, into build/bench-env; takes an hour)
	@tools/deps.sh
	@tools/deps.sh --dev
	@tools/model.sh
	@$(SUBMAKE) all
	@tests/bench/run.sh

.PHONY: docs compdb format tidy
docs: all ## write docs/CONFIG.md from the options table
	@mkdir -p docs
	@$(BUILD)/engram config --document >$(BUILD)/CONFIG.md
	@mv $(BUILD)/CONFIG.md docs/CONFIG.md
compdb: ## write compile_commands.json for editors and clang-tidy
	@$(MAKE) -nB --no-print-directory all unit | tools/compdb.py >compile_commands.json
format: ## format all C in place with clang-format
	@command -v clang-format >/dev/null || tools/deps.sh --dev
	@clang-format -i $(OUR_C)
tidy: compdb ## check all C with clang-tidy
	@command -v clang-tidy >/dev/null || tools/deps.sh --dev
	@printf '%s\n' $(filter-out $(NOT_TIDY),$(filter %.c,$(OUR_C))) | xargs -P $$(nproc) -n 4 clang-tidy --quiet -p .

.PHONY: clean distclean help
clean: ## delete what was built; keep the model, the broker and the CUDA toolkit
	@rm -rf $(BUILD)/engram $(BUILD)/libraries $(BUILD)/obj $(BUILD)/asan $(BUILD)/tests $(BUILD)/tests-asan \
		$(BUILD)/emulated $(BUILD)/emulated-asan $(BUILD)/emulated-checked $(BUILD)/libengram_cuda.so \
		$(BUILD)/test-logs compile_commands.json
distclean: clean ## delete what was fetched too
	@rm -rf $(BUILD)
help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9% -]+:.*## / { n = split($$1, names, " "); \
		for (i = 1; i <= n; i++) printf "%-14s %s\n", names[i], $$2 }' Makefile tests/cuda/rules.mk

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
