# Ingot: the only makefile.  `make help` lists the targets.
#
#   CUDA=0|1      build the CUDA backend, lib/libingot_cuda.so (default: is nvcc there; never in
#                 sanitized builds); the tools open it when they run and do without where it is not
#   CUDA_ARCH=    build it for one target only, e.g. 90a (default: sm_80, 86, 89, 90a and PTX)
#   MODE=release|debug|asan (fuzz: used by `make fuzz`)
#   STATIC=1      link Debian's static libraries (a binary that runs on a bare machine)
#   V=1           show the commands

comma := ,
space := $(subst ,, )
MODE   ?= release
STATIC ?= 0
PREFIX ?= /usr/local
V      ?= 0
Q       = $(if $(filter 1,$(V)),,@)
say     = @printf '  %-8s%s\n' '$(1)' '$(2)'

BUILD := build/$(MODE)$(if $(filter 1,$(STATIC)),-static)
CC    := $(if $(filter default,$(origin CC)),gcc,$(CC))

WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla \
           -Wpointer-arith -Wcast-qual -Wwrite-strings -Wformat=2
CPPFLAGS += -I. -Icommon -Iformat -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8
CFLAGS_release := -O3 -g -fno-math-errno
CFLAGS_debug   := -O0 -g3
# libFuzzer is clang's; its warnings differ from gcc's from version to version, hence no -Werror.
CFLAGS_fuzz    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -Wno-error
CFLAGS_asan    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
# assert() stays on in release: it is for our own mistakes, never for bytes from a file.
# Position-independent: the library of the CUDA backend carries its own copy of what it uses.
CFLAGS  += -std=c11 $(WARN) $(CFLAGS_$(MODE)) -pthread -fPIC
LDFLAGS_asan := -fsanitize=address,undefined
LDFLAGS_fuzz := -fsanitize=fuzzer,address,undefined
LDFLAGS += $(LDFLAGS_$(MODE)) -pthread -Wl,-rpath,'$$ORIGIN/../lib:$$ORIGIN/../lib/ingot'

LIBS_DYNAMIC := -llapack -lopenblas -lxxhash -lzstd -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm
LIBS_STATIC  := -Wl,-Bstatic -lopenblas -lgfortran -lquadmath -lxxhash -lzstd -ljansson \
                -lpcre2-8 -lutf8proc -lcrypto -Wl,-Bdynamic -ldl -lm
LIBS := $(if $(filter 1,$(STATIC)),$(LIBS_STATIC),$(LIBS_DYNAMIC) -ldl)

FOLDERS := common format kernels kernels/cpu calib convert verify zoo
SOURCES := $(filter-out %_main.c kernels/cpu/isa_%.c format/isa_%.c,$(wildcard $(addsuffix /*.c,$(FOLDERS))))
MAINS   := $(wildcard $(addsuffix /*_main.c,$(FOLDERS)))
TOOLS   := $(patsubst %_main.c,ingot-%,$(notdir $(MAINS)))

# kernels/cpu/isa_*.c are compiled once per instruction set and chosen at run time
# (kernels/cpu/dispatch.c); the macro ISA names the variant.  Products of packed weights have two
# more, with VNNI.
ISAS := v2 v3 v4
ISA_SOURCES := $(wildcard kernels/cpu/isa_*.c)
ISA_OBJECTS := $(foreach isa,$(ISAS),$(patsubst %.c,$(BUILD)/%.$(isa).o,$(ISA_SOURCES))) \
               $(foreach isa,v3n v4n,$(BUILD)/kernels/cpu/isa_product.$(isa).o)

# Digests likewise, for narrower sets: libingot asks for no more than they need.
DIGEST_OBJECTS := $(foreach isa,sse2 avx2 avx512,$(BUILD)/format/isa_digest.$(isa).o)

OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) $(ISA_OBJECTS) $(DIGEST_OBJECTS)
LIBRARY := $(BUILD)/libingot_all.a

# What a loader author links: the container reader and nothing else.
PUBLIC_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,common/status.c \
                  $(filter-out format/container_write%.c,$(wildcard format/container*.c)) \
                  format/pack.c format/half.c format/digest.c format/weight_row.c) \
                  $(DIGEST_OBJECTS)
PUBLIC_LIBRARY := $(BUILD)/libingot.a

# And, to compute on a CUDA device: calls into the library of the CUDA backend, which it opens.
KERNELS_OBJECTS := $(patsubst %,$(BUILD)/kernels/%.o,ingot_kernels engine_check plugin device_name)
KERNELS_LIBRARY := $(BUILD)/libingot_kernels.a

# The CUDA backend: a library of its own, so that the tools start on machines without CUDA.
NVCC         := $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
CUDA         ?= $(if $(and $(NVCC),$(filter release debug,$(MODE))),1,0)
CUDA_SOURCES := $(wildcard kernels/cuda/*.cu)
CUDA_OBJECTS := $(CUDA_SOURCES:%=$(BUILD)/%.o)
CUDA_LIBRARY := $(if $(filter 1,$(CUDA)),$(BUILD)/lib/libingot_cuda.so)
CUDA_TARGETS := $(if $(CUDA_ARCH),-gencode arch=compute_$(CUDA_ARCH)$(comma)code=sm_$(CUDA_ARCH), \
    $(foreach a,80 86 89 90a,-gencode arch=compute_$(a)$(comma)code=sm_$(a)) \
    -gencode arch=compute_90$(comma)code=compute_90)
CUDA_ROOT     = $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
NVCCFLAGS    := -std=c++17 -O3 -lineinfo -Werror all-warnings -Xcompiler -fPIC,-Wall,-pthread \
                --threads 2 -DINGOT_HAS_SM90A=$(if $(findstring 90a,$(CUDA_TARGETS)),1,0)

UNIT_SOURCES := $(wildcard tests/unit/test_*.c)
UNIT_TESTS   := $(UNIT_SOURCES:tests/unit/%.c=$(BUILD)/tests/%)
# Those that link the library of the CUDA backend; they need no device.
UNIT_TESTS   += $(if $(CUDA_LIBRARY),$(patsubst tests/unit/%.cu,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.cu)))
FUZZ_SOURCES := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_REPLAYS := $(FUZZ_SOURCES:tests/fuzz/%.c=$(BUILD)/fuzz/%)

# Preloaded by the fault tests: calls of the C library that go wrong.
FAULT_LIBRARIES := $(patsubst tests/fault/%.c,$(BUILD)/fault/%.so,$(wildcard tests/fault/*.c))

.PHONY: help all setup demo test test-gpu check check-models bench fuzz format install uninstall clean \
        tools libraries run-tests run-demo analyze fuzzers
.DEFAULT_GOAL := help

help:
	@echo 'make demo          install what is missing, build, convert and verify the shipped model'
	@echo 'make test          install what is missing, build, run every test'
	@echo 'make all           build tools, libraries and man pages into $(BUILD)'
	@echo 'make setup         install the Debian packages Ingot is built with (STATIC=1: static too)'
	@echo 'make test-gpu      the tests of the CUDA backend alone, on the first device'
	@echo 'make check         tests under ASan and UBSan, static analysis, layer rule'
	@echo 'make analyze       static analysis alone'
	@echo 'make run-tests     the tests alone; ONLY=PATTERN: those whose name matches'
	@echo 'make check-models  reproduce every reference.json of ../shared/models (long)'
	@echo 'make bench         measure this machine: see README'
	@echo 'make fuzz          fuzz every file reader with libFuzzer (FUZZ_SECONDS=60 each)'
	@echo 'make format        clang-format the tree'
	@echo 'make install       PREFIX=$(PREFIX) DESTDIR=: bin, lib, include, pkg-config, man, magic'
	@echo 'make uninstall     the same, away'
	@echo 'make clean'

setup:
	@sh scripts/setup.sh $(if $(filter 1,$(STATIC)),--static)

# As many jobs as there are processors, unless the command line says how many.
JOBS = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

# setup runs to its end before anything is looked for, hence the second make.
demo: setup
	@$(MAKE) --no-print-directory $(JOBS) run-demo
test:
	@sh scripts/setup.sh --test
	@$(MAKE) --no-print-directory $(JOBS) run-tests

all: tools libraries man
libraries: $(PUBLIC_LIBRARY) $(KERNELS_LIBRARY) $(CUDA_LIBRARY)
tools: $(TOOLS:%=$(BUILD)/bin/%)

run-demo: tools libraries
	@sh examples/demo.sh $(BUILD)/bin
run-tests: all $(UNIT_TESTS) $(FUZZ_REPLAYS) $(FAULT_LIBRARIES)
	@sh tests/run.sh $(BUILD) $(if $(value ONLY),'$(value ONLY)')

# What compares the CUDA backend with its references; skipped, loudly, without a device.
GPU_TESTS := $(patsubst tests/unit/%.c,%,$(shell sh tests/run.sh --device-tests))
# Preloaded by tests/sanitize_gpu.sh.
GPU_PRELOADED := $(if $(CUDA_LIBRARY),$(BUILD)/tests/plain_products.so)
test-gpu: tools libraries $(GPU_TESTS:%=$(BUILD)/tests/%) $(GPU_PRELOADED)
	@sh tests/run.sh $(BUILD) '^(unit/($(subst $(space),|,$(GPU_TESTS)))|cli/[a-z]*_cuda)$$'

# Sanitized tests first (they include the layer rule), then the analyzer.
check:
	@sh scripts/setup.sh --check
	@$(MAKE) --no-print-directory $(JOBS) MODE=asan run-tests
	@$(MAKE) --no-print-directory analyze

# ctuuninitvar: with one process cppcheck takes the target of an output parameter for an input; with
# more it does not look.
analyze:
	@command -v cppcheck >/dev/null || { echo 'cppcheck is missing: run make check'; exit 2; }
	$(call say,CHECK,cppcheck)
	$(Q)cppcheck -q -j $(shell nproc) --std=c11 --enable=warning,portability,performance \
	    --inline-suppr --error-exitcode=1 --suppress=missingIncludeSystem \
	    --suppress=normalCheckLevelMaxBranches --suppress=ctuuninitvar \
	    -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8 -DISA=v3 -I. -Icommon -Iformat -Itests/unit $(wildcard $(FOLDERS)) tests

# Every reader in turn, from its seed corpus; new inputs stay under build/.
FUZZ_SECONDS ?= 60
fuzz:
	@sh scripts/setup.sh --fuzz
	@$(MAKE) --no-print-directory $(JOBS) MODE=fuzz CC=clang fuzzers
	@sh tests/fuzz/run.sh build/fuzz $(FUZZ_SECONDS)
fuzzers: $(FUZZ_SOURCES:tests/fuzz/%.c=$(BUILD)/fuzzers/%)

bench: tools
	@$(BUILD)/bin/ingot-bench verify --folder $(BUILD)

# INGOT_SMOLLM2 names the folder of smollm2-135m, which ../shared holds as a build script.
check-models: $(BUILD)/tests/test_models
	@INGOT_CHECK_MODELS=1 $<

define compile
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(1) -MMD -MP -c $< -o $@
endef

$(BUILD)/%.o: %.c
	$(call compile,)
$(BUILD)/%.v2.o: %.c
	$(call compile,-march=x86-64-v2 -Wno-psabi -DISA=v2 -ffp-contract=fast)
$(BUILD)/%.v3.o: %.c
	$(call compile,-march=x86-64-v3 -Wno-psabi -DISA=v3 -ffp-contract=fast)
$(BUILD)/%.v4.o: %.c
	$(call compile,-march=x86-64-v4 -Wno-psabi -mprefer-vector-width=512 -DISA=v4 -ffp-contract=fast)
$(BUILD)/%.sse2.o: %.c
	$(call compile,-DISA=sse2)
$(BUILD)/%.avx2.o: %.c
	$(call compile,-mavx2 -DISA=avx2)
$(BUILD)/%.avx512.o: %.c
	$(call compile,-mavx512f -DISA=avx512)
$(BUILD)/%.v3n.o: %.c
	$(call compile,-march=x86-64-v3 -mavxvnni -Wno-psabi -DISA=v3n -ffp-contract=fast)
$(BUILD)/%.v4n.o: %.c
	$(call compile,-march=x86-64-v4 -mavx512vnni -Wno-psabi -mprefer-vector-width=512 -DISA=v4n \
	    -ffp-contract=fast)

$(LIBRARY): $(OBJECTS)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^
# One object, so that the names which its sources share stay in it: a program may have its own.
$(PUBLIC_LIBRARY): $(PUBLIC_OBJECTS)
	$(call say,AR,$@)
	$(Q)ld -r -o $(@:.a=.o) $^ && objcopy -w --keep-global-symbol='ingot_*' $(@:.a=.o)
	$(Q)rm -f $@ && ar rcs $@ $(@:.a=.o)

$(KERNELS_LIBRARY): $(KERNELS_OBJECTS)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$@)
	$(Q)$(NVCC) $(NVCCFLAGS) $(CUDA_TARGETS) -I. -Icommon -Iformat -MD -MP -MF $@.d -MT $@ \
	    -c $< -o $@
$(BUILD)/lib/libingot_cuda.so: $(CUDA_OBJECTS) $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) -shared $(LDFLAGS) -o $@ $^ -L$(CUDA_ROOT)/lib64 -Wl,-rpath,$(CUDA_ROOT)/lib64 \
	    -Wl,--as-needed,-z,now,--exclude-libs=ALL -lcudart_static -lcublas -lcusolver $(LIBS) \
	    -lstdc++ -ldl -lrt

define tool_rule
$(BUILD)/bin/ingot-$(patsubst %_main,%,$(notdir $(basename $(1)))): $(BUILD)/$(basename $(1)).o $(LIBRARY)
	@mkdir -p $$(@D)
	$$(call say,LD,$$@)
	$(Q)$(CC) $$(LDFLAGS) -o $$@ $$^ $(LIBS)
endef
$(foreach m,$(MAINS),$(eval $(call tool_rule,$(m))))

# -MF and -MT: without -c the compiler would derive other names from the output.
$(BUILD)/tests/%: tests/unit/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) -Itests/unit $(CFLAGS) -MMD -MP -MF $@.d -MT $@ -o $@ $< $(LIBRARY) \
	    $(LDFLAGS) -lcunit $(LIBS)
# The example sees headers where they are installed.
$(BUILD)/tests/test_example: private CPPFLAGS += -Ikernels
$(BUILD)/tests/%: tests/unit/%.cu $(CUDA_LIBRARY) $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,NVCC,$@)
	$(Q)$(NVCC) $(NVCCFLAGS) $(CUDA_TARGETS) -I. -Icommon -Iformat -Itests/unit -MD -MP -MF $@.d -MT $@ \
	    -o $@ $< $(CUDA_LIBRARY) $(LIBRARY) -lcunit -Xlinker --export-dynamic \
	    -Xlinker -rpath='$$ORIGIN/../lib'
$(BUILD)/tests/%.so: tests/%.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$@)
	$(Q)$(NVCC) $(NVCCFLAGS) $(CUDA_TARGETS) -shared -MD -MP -MF $@.d -MT $@ -o $@ $< \
	    -L$(CUDA_ROOT)/lib64 -lcublas -Xlinker -rpath=$(CUDA_ROOT)/lib64
# By itself: the failure of decision 0032.
$(BUILD)/tests/share_card: tests/share_card.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$@)
	$(Q)$(NVCC) $(NVCCFLAGS) $(CUDA_TARGETS) -o $@ $< -L$(CUDA_ROOT)/lib64 -lcublas \
	    -Xlinker -rpath=$(CUDA_ROOT)/lib64
$(BUILD)/fuzz/%: tests/fuzz/%.c tests/fuzz/replay.c $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-missing-prototypes -MMD -MP -MF $@.d -MT $@ -o $@ \
	    $< tests/fuzz/replay.c $(LIBRARY) $(LDFLAGS) $(LIBS)
# Never sanitized: it stands behind the sanitizer's own library.
$(BUILD)/fault/%.so: tests/fault/%.c
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) -D_GNU_SOURCE -std=c11 $(WARN) -O1 -g -fno-builtin -fPIC -shared -o $@ $< -ldl
# Not preloaded, but opened: with what a backend is made of.
$(BUILD)/fault/cpu_card.so: tests/fault/cpu_card.c $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -MF $@.d -MT $@ -shared -o $@ $< $(LIBRARY) \
	    $(LDFLAGS) -Wl,--exclude-libs=ALL $(LIBS)
$(BUILD)/fuzzers/%: tests/fuzz/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-missing-prototypes -MMD -MP -MF $@.d -MT $@ -o $@ \
	    $< $(LIBRARY) $(LDFLAGS) $(LIBS)

# Man pages come from the option tables of the tools themselves.
MAN_PAGES := $(TOOLS:%=$(BUILD)/man/%.1)
.PHONY: man
man: $(MAN_PAGES)
$(BUILD)/man/%.1: $(BUILD)/bin/%
	@mkdir -p $(@D)
	$(call say,MAN,$@)
	$(Q)$< --man > $@.tmp && mv $@.tmp $@

PUBLIC_HEADERS := format/ingot.h kernels/ingot_kernels.h common/ingot_status.h common/ingot_container_codes.h
VERSION := $(shell sed -n 's/.*define INGOT_VERSION "\(.*\)"/\1/p' common/cli.h)
INSTALL_ROOT = $(DESTDIR)$(PREFIX)

install: all
	$(call say,INSTALL,$(INSTALL_ROOT))
	$(Q)install -d $(INSTALL_ROOT)/bin $(INSTALL_ROOT)/lib/pkgconfig $(INSTALL_ROOT)/include \
	    $(INSTALL_ROOT)/share/man/man1
	$(Q)$(if $(TOOLS),install -m 755 $(TOOLS:%=$(BUILD)/bin/%) $(INSTALL_ROOT)/bin)
	$(Q)$(if $(TOOLS),install -m 644 $(MAN_PAGES) $(INSTALL_ROOT)/share/man/man1)
	$(Q)install -m 644 $(PUBLIC_LIBRARY) $(KERNELS_LIBRARY) $(INSTALL_ROOT)/lib
	$(Q)$(if $(CUDA_LIBRARY),install -D -m 755 -t $(INSTALL_ROOT)/lib/ingot $(CUDA_LIBRARY))
	$(Q)install -m 644 $(PUBLIC_HEADERS) $(INSTALL_ROOT)/include
	$(Q)install -D -m 644 -t $(INSTALL_ROOT)/share/ingot spec/ingot.magic
	$(Q)for name in ingot ingot_kernels; do \
	    sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' scripts/$$name.pc.in \
	        > $(INSTALL_ROOT)/lib/pkgconfig/$$name.pc && \
	    chmod 644 $(INSTALL_ROOT)/lib/pkgconfig/$$name.pc || exit 1; done

uninstall:
	$(Q)rm -f $(TOOLS:%=$(INSTALL_ROOT)/bin/%) $(TOOLS:%=$(INSTALL_ROOT)/share/man/man1/%.1) \
	    $(INSTALL_ROOT)/lib/libingot.a $(INSTALL_ROOT)/lib/libingot_kernels.a $(INSTALL_ROOT)/lib/ingot/libingot_cuda.so \
	    $(INSTALL_ROOT)/lib/pkgconfig/ingot.pc $(INSTALL_ROOT)/lib/pkgconfig/ingot_kernels.pc \
	    $(INSTALL_ROOT)/share/ingot/ingot.magic \
	    $(addprefix $(INSTALL_ROOT)/include/,$(notdir $(PUBLIC_HEADERS)))

format:
	@git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
