# Ingot: the only makefile.  `make help` lists the targets.
#
#   CUDA=0|1      build the CUDA backend (default: is nvcc there and are there .cu files)
#   CUDA_ARCH=    build for one target only, e.g. 90a (default: sm_80, 86, 89, 90a and PTX)
#   MODE=release|debug|asan
#   STATIC=1      link Debian's static libraries (a binary that runs on a bare machine)
#   V=1           show the commands

MODE   ?= release
STATIC ?= 0
PREFIX ?= /usr/local
V      ?= 0
Q       = $(if $(filter 1,$(V)),,@)
say     = @printf '  %-8s%s\n' '$(1)' '$(2)'

BUILD := build/$(MODE)$(if $(filter 1,$(STATIC)),-static)
CC    ?= gcc

WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla \
           -Wpointer-arith -Wcast-qual -Wwrite-strings -Wformat=2
CPPFLAGS += -I. -Icommon -Iformat -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8
CFLAGS_release := -O3 -g -fno-math-errno
CFLAGS_debug   := -O0 -g3
CFLAGS_asan    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
# assert() stays on in release: it is for our own mistakes, never for bytes from a file.
CFLAGS  += -std=c11 $(WARN) $(CFLAGS_$(MODE)) -pthread
LDFLAGS += $(if $(filter asan,$(MODE)),-fsanitize=address,undefined) -pthread

LIBS_DYNAMIC := -llapack -lopenblas -lxxhash -lzstd -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm
LIBS_STATIC  := -Wl,-Bstatic -lopenblas -lgfortran -lquadmath -lxxhash -lzstd -ljansson \
                -lpcre2-8 -lutf8proc -lcrypto -Wl,-Bdynamic -ldl -lm
LIBS := $(if $(filter 1,$(STATIC)),$(LIBS_STATIC),$(LIBS_DYNAMIC))

FOLDERS := common format kernels kernels/cpu calib convert verify
SOURCES := $(filter-out %_main.c kernels/cpu/isa_%.c,$(wildcard $(addsuffix /*.c,$(FOLDERS))))
MAINS   := $(wildcard $(addsuffix /*_main.c,$(FOLDERS)))
TOOLS   := $(patsubst %_main.c,ingot-%,$(notdir $(MAINS)))

# kernels/cpu/isa_*.c are compiled once per instruction set and chosen at run time
# (kernels/cpu/dispatch.c); the macro ISA names the variant.
ISAS := v2 v3 v4
ISA_SOURCES := $(wildcard kernels/cpu/isa_*.c)
ISA_OBJECTS := $(foreach isa,$(ISAS),$(patsubst %.c,$(BUILD)/%.$(isa).o,$(ISA_SOURCES)))

OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) $(ISA_OBJECTS)
LIBRARY := $(BUILD)/libingot_all.a

# What a loader author links: the container reader and nothing else.
PUBLIC_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,common/status.c $(wildcard format/container*.c) \
                  format/pack.c format/half.c format/digest.c format/weight_row.c)
PUBLIC_LIBRARY := $(BUILD)/libingot.a

UNIT_SOURCES := $(wildcard tests/unit/test_*.c)
UNIT_TESTS   := $(UNIT_SOURCES:tests/unit/%.c=$(BUILD)/tests/%)
FUZZ_SOURCES := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_REPLAYS := $(FUZZ_SOURCES:tests/fuzz/%.c=$(BUILD)/fuzz/%)

.PHONY: help all setup demo test check check-models bench fuzz format install uninstall clean \
        tools run-tests run-demo
.DEFAULT_GOAL := help

help:
	@echo 'make demo          install what is missing, build, convert and verify the shipped model'
	@echo 'make test          install what is missing, build, run every test'
	@echo 'make all           build tools, libraries and man pages into $(BUILD)'
	@echo 'make setup         install the Debian packages Ingot is built with'
	@echo 'make check         tests under ASan and UBSan, static analysis, layer rule'
	@echo 'make check-models  reproduce every reference.json of ../shared/models (long)'
	@echo 'make bench         measure this machine: see README'
	@echo 'make fuzz          fuzz every file reader with libFuzzer (FUZZ_SECONDS=60 each)'
	@echo 'make format        clang-format the tree'
	@echo 'make install       PREFIX=$(PREFIX) DESTDIR=: bin, lib, include, pkg-config, man'
	@echo 'make clean'

setup:
	@sh scripts/setup.sh

# setup runs to its end before anything is looked for, hence the second make.
demo: setup
	@$(MAKE) --no-print-directory run-demo
test: setup
	@$(MAKE) --no-print-directory run-tests

all: tools $(PUBLIC_LIBRARY) man
tools: $(TOOLS:%=$(BUILD)/bin/%)

run-demo: tools
	@sh examples/demo.sh $(BUILD)/bin
run-tests: all $(UNIT_TESTS) $(FUZZ_REPLAYS)
	@sh tests/run.sh $(BUILD)

define compile
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(1) -MMD -MP -c $< -o $@
endef

$(BUILD)/%.o: %.c
	$(call compile,)
$(BUILD)/%.v2.o: %.c
	$(call compile,-march=x86-64-v2 -DISA=v2 -ffp-contract=fast)
$(BUILD)/%.v3.o: %.c
	$(call compile,-march=x86-64-v3 -DISA=v3 -ffp-contract=fast)
$(BUILD)/%.v4.o: %.c
	$(call compile,-march=x86-64-v4 -mprefer-vector-width=512 -DISA=v4 -ffp-contract=fast)

$(LIBRARY): $(OBJECTS)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^
$(PUBLIC_LIBRARY): $(PUBLIC_OBJECTS)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

define tool_rule
$(BUILD)/bin/ingot-$(patsubst %_main,%,$(notdir $(basename $(1)))): $(BUILD)/$(basename $(1)).o $(LIBRARY)
	@mkdir -p $$(@D)
	$$(call say,LD,$$@)
	$(Q)$(CC) $(LDFLAGS) -o $$@ $$^ $(LIBS)
endef
$(foreach m,$(MAINS),$(eval $(call tool_rule,$(m))))

$(BUILD)/tests/%: tests/unit/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) -Itests/unit $(CFLAGS) -MMD -MP -o $@ $< $(LIBRARY) $(LDFLAGS) -lcunit $(LIBS)
$(BUILD)/fuzz/%: tests/fuzz/%.c tests/fuzz/replay.c $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -o $@ $< tests/fuzz/replay.c $(LIBRARY) $(LDFLAGS) $(LIBS)

# Man pages come from the option tables of the tools themselves.
MAN_PAGES := $(TOOLS:%=$(BUILD)/man/%.1)
.PHONY: man
man: $(MAN_PAGES)
$(BUILD)/man/%.1: $(BUILD)/bin/%
	@mkdir -p $(@D)
	$(Q)$< --man > $@

format:
	@git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
