# Engram's build. `make help` lists the targets.
BUILD ?= build
CC ?= gcc
VERSION := 0.1.0

ROOMS := base config record gpu gpu/cpu gpu/encoder store engine train consumer producer stage stage/console
LIBRARIES := rdkafka lmdb libutf8proc libxxhash yajl zlib
LIBS := -lrdkafka -llmdb -lmsgpackc -ldnnl -lutf8proc -lxxhash -lyajl -lz -lm -lpthread

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Werror
CPPFLAGS += -I. -D_POSIX_C_SOURCE=200809L -DENGRAM_VERSION='"$(VERSION)"'
CFLAGS ?= -O2 -g
ALL_CFLAGS := -std=c17 $(WARNINGS) $(CFLAGS) -fno-math-errno -pthread
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

ROOM_SOURCES := $(foreach room,$(ROOMS),$(wildcard $(room)/*.c))
CLI_SOURCES := $(wildcard cli/*.c)
UNIT_SOURCES := $(wildcard tests/unit/*.c)
ROOM_OBJECTS := $(ROOM_SOURCES:%.c=$(BUILD)/obj/%.o)
CLI_OBJECTS := $(CLI_SOURCES:%.c=$(BUILD)/obj/%.o)
UNIT_TESTS := $(UNIT_SOURCES:tests/unit/%.c=$(BUILD)/tests/%)
ASAN_OBJECTS := $(ROOM_SOURCES:%.c=$(BUILD)/asan/%.o)
ASAN_TESTS := $(UNIT_SOURCES:tests/unit/%.c=$(BUILD)/tests-asan/%)

.DELETE_ON_ERROR:
.SECONDARY:

.PHONY: all
all: $(BUILD)/engram ## build build/engram (no root, no network)

$(BUILD)/engram: $(CLI_OBJECTS) $(ROOM_OBJECTS)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/asan/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(SANITIZE) -MMD -MP -c -o $@ $<

$(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(ROOM_OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/tests-asan/%: $(BUILD)/asan/tests/unit/%.o $(ASAN_OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(SANITIZE) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

.PHONY: room-%
room-%: ## compile one room: make room-store
	@$(MAKE) --no-print-directory $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard $(subst -,/,$*)/*.c))

.PHONY: unit unit-asan
unit: $(UNIT_TESTS) ## build the unit tests
unit-asan: $(ASAN_TESTS) ## build the unit tests with ASan and UBSan

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
