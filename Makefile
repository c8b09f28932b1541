# storage-daemon: one non-recursive Makefile. Sources are found by folder; every storey is one archive, and a program or
# test links its storey and those below, so a wrong dependency does not link. `make help` lists the targets.
AFTER_DEPS := $(if $(filter deps,$(MAKECMDGOALS)),$(filter-out deps,$(MAKECMDGOALS)))
ifneq ($(AFTER_DEPS),)
# What is asked for besides deps needs what deps installs, from the first line of this file on: a second make does it.
.PHONY: deps after-deps $(AFTER_DEPS)
deps:
	@sh tests/deps.sh
after-deps: deps
	+@$(MAKE) --no-print-directory $(AFTER_DEPS)
$(AFTER_DEPS): after-deps ;
else

BUILD ?= build
CC ?= gcc
PKGS := glib-2.0 liburing libnbd zlib libzstd nettle
OPT ?= -O2 -g
SAN ?=
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS))
# libnbd is loaded when it is needed (block/drivers/nbd/library.h).
PKG_LIBS := $(shell pkg-config --libs $(filter-out libnbd,$(PKGS)))
CFLAGS += -std=gnu11 $(OPT) $(SAN) -Wall -Wextra -Werror -Wno-unused-parameter -Wmissing-prototypes \
	-Wstrict-prototypes -Wvla -fno-strict-aliasing -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -pthread -I. -I$(BUILD)/gen $(PKG_CFLAGS)
LDFLAGS += $(SAN) -pthread
LDLIBS += $(PKG_LIBS)
# make V=1 shows the commands themselves.
Q := $(if $(V),,@)
say = @$(if $(V),:,echo "  $(1)")
PYTHON ?= /usr/bin/python3

STOREYS := util aio qapi crypto graph format drivers jobs export daemon
DIR_util := block/util
DIR_aio := block/aio
DIR_qapi := qapi/rt
DIR_crypto := block/crypto
DIR_graph := block/graph
DIR_format := block/format
DIR_drivers := block/drivers block/drivers/qcow2 block/drivers/qed block/drivers/nbd
DIR_jobs := block/jobs
DIR_export := block/export
DIR_daemon := daemon

.PHONY: all
all: $(BUILD)/storage-daemon $(BUILD)/storage-ctl

.PHONY: help
help:
	@echo 'make                 storage-daemon and storage-ctl, in BUILD ($(BUILD))'
	@echo 'make deps            install the Debian packages that building and testing need'
	@echo 'make demo            mirror and back up a real file system image while a client writes to it'
	@echo 'make check           all tests (ONLY=REGEX: those whose names match)'
	@echo 'make check-asan      the same under AddressSanitizer and UndefinedBehaviorSanitizer, in build-asan'
	@echo 'make check-seeds     the QEMU iotests that specify the project (SEEDS=DIR)'
	@echo 'make fuzz            fuzz every parser for TIME=60 seconds (FUZZ=NAME: one), with clang, in build-fuzz'
	@echo 'make crash-replay    simulate power cuts: STATES=20000 distinct ones, SEED=1 (ONLY=REGEX: of some workloads)'
	@echo 'make mutation        leave out each barrier in turn: crash-replay must notice'
	@echo 'make bench           speed beside the peers (ROWS="NAME…": some of the rows)'
	@echo 'make profile         where the time goes in one row of it (ROW=NAME), as stacks for a flame graph'
	@echo 'make format lint     clang-format all sources; run the lints'
	@echo 'make docs            the QMP reference, from the schema, in $(BUILD)/docs/qmp-reference.md'
	@echo 'make install         to $$(DESTDIR)$$(PREFIX), PREFIX=/usr/local'
	@echo 'make clean           remove BUILD'

# ---- generated code ------------------------------------------------------------------------------------------------
SCHEMA := $(sort $(wildcard qapi/schema/*.json))
GENERATOR := $(wildcard qapi/gen/*.py)
GEN := $(BUILD)/gen
GEN_H := $(GEN)/qapi/types.h $(GEN)/qapi/commands.h $(GEN)/qapi/events.h
GEN_C := $(GEN)/qapi/tables.c $(GEN)/qapi/commands.c $(GEN)/qapi/events.c

$(GEN)/qapi/stamp: $(SCHEMA) $(GENERATOR)
	@mkdir -p $(@D)
	$(PYTHON) qapi/gen/generate.py --out $(@D) $(SCHEMA)
	@touch $@
$(GEN_H) $(GEN_C): $(GEN)/qapi/stamp ;

DRIVER_SRCS := $(foreach d,$(DIR_drivers),$(wildcard $(d)/*.c))
$(GEN)/drivers.c: block/drivers/list.sh $(DRIVER_SRCS)
	@mkdir -p $(@D)
	sh block/drivers/list.sh $(DRIVER_SRCS) >$@.tmp && mv $@.tmp $@

# ---- archives, one a storey ------------------------------------------------------------------------------------------
SRC_util := $(wildcard $(DIR_util)/*.c)
SRC_aio := $(wildcard $(DIR_aio)/*.c)
SRC_qapi := $(wildcard $(DIR_qapi)/*.c) $(GEN)/qapi/tables.c $(GEN)/qapi/events.c
SRC_crypto := $(wildcard $(DIR_crypto)/*.c)
SRC_graph := $(wildcard $(DIR_graph)/*.c)
SRC_format := $(wildcard $(DIR_format)/*.c)
SRC_drivers := $(DRIVER_SRCS) $(GEN)/drivers.c
SRC_jobs := $(wildcard $(DIR_jobs)/*.c)
SRC_export := $(wildcard $(DIR_export)/*.c)
SRC_daemon := $(filter-out daemon/main.c daemon/ctl%.c,$(wildcard daemon/*.c)) $(GEN)/qapi/commands.c

obj = $(patsubst $(GEN)/%.c,$(BUILD)/obj/gen/%.o,$(patsubst %.c,$(BUILD)/obj/%.o,$(filter-out $(GEN)/%,$(1))) $(filter $(GEN)/%,$(1)))
# The stamp comes first, but only headers that changed (the .d files know them) make objects stale.
$(BUILD)/obj/gen/%.o: $(GEN)/%.c | $(GEN)/qapi/stamp
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/%.o: %.c | $(GEN)/qapi/stamp
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

define archive
OBJ_$(1) := $$(call obj,$$(SRC_$(1)))
$(BUILD)/lib$(1).a: $$(OBJ_$(1))
	$$(call say,AR $$@)
	@rm -f $$@
	$(Q)ar rcs $$@ $$^
endef
$(foreach s,$(STOREYS),$(eval $(call archive,$(s))))

# The archives of a storey and of all below it, top first.
below_util := util
below_aio := aio $(below_util)
below_qapi := qapi $(below_aio)
below_crypto := crypto $(below_qapi)
below_graph := graph $(below_crypto)
below_format := format $(below_graph)
below_drivers := drivers $(below_format)
below_jobs := jobs $(below_drivers)
below_export := export $(below_jobs)
below_daemon := daemon $(below_export)
libs = $(patsubst %,$(BUILD)/lib%.a,$(below_$(1)))

$(BUILD)/storage-daemon: $(BUILD)/obj/daemon/main.o $(call libs,daemon)
	$(call say,LINK $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
CTL_SRCS := $(wildcard daemon/ctl*.c)
$(BUILD)/storage-ctl: $(call obj,$(CTL_SRCS)) $(call libs,qapi)
	$(call say,LINK $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# ---- tests -----------------------------------------------------------------------------------------------------------
UNIT_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/*.c))
GRAPH_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/graph/test-*.c))
define unit_rule
$(BUILD)/tests/unit/$(1)-%: $(BUILD)/obj/tests/unit/$(1)-%.o $(call libs,$(1))
	@mkdir -p $$(@D)
	$$(call say,LINK $$@)
	$(Q)$$(CC) $$(LDFLAGS) -o $$@ $$^ $$(LDLIBS) -lcmocka
endef
$(foreach s,$(STOREYS),$(eval $(call unit_rule,$(s))))
, := ,
# Faults come in between the file driver and the calls that it makes: tests/unit/sweep-inject.h.
$(BUILD)/tests/unit/daemon-sweep: LDFLAGS += $(patsubst %,-Wl$(,)--wrap=%,aio_co_preadv aio_co_pwritev \
	aio_co_fsync aio_co_fallocate ftruncate64 copy_file_range)
GRAPH_HELPERS := $(call obj,$(filter-out tests/graph/test-%,$(wildcard tests/graph/*.c)))
$(BUILD)/tests/graph/test-%: $(BUILD)/obj/tests/graph/test-%.o $(GRAPH_HELPERS) $(call libs,graph)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/tests/bench/ceiling: $(BUILD)/obj/tests/bench/ceiling.o
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^
# A fuzz target is tests/fuzz/STOREY-NAME.c with LLVMFuzzerTestOneInput() and a corpus in tests/fuzz/corpus/STOREY-NAME/.
# Everywhere it is linked with a main() that replays the corpus; `make fuzz` links libFuzzer instead.
FUZZ_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/fuzz/*-*.c))
FUZZ_MAIN ?= $(BUILD)/obj/tests/fuzz/replay.o
define fuzz_rule
$(BUILD)/tests/fuzz/$(1)-%: $(BUILD)/obj/tests/fuzz/$(1)-%.o $(FUZZ_MAIN) $(call libs,$(1))
	@mkdir -p $$(@D)
	$$(call say,LINK $$@)
	$(Q)$$(CC) $$(LDFLAGS) $$(FUZZ_LDFLAGS) -o $$@ $$^ $$(LDLIBS)
endef
$(foreach s,$(STOREYS),$(eval $(call fuzz_rule,$(s))))
# Passwords are cheap there: tests/fuzz/drivers-image.c.
$(BUILD)/tests/fuzz/drivers-image: LDFLAGS += -Wl,--wrap=pbkdf2 -Wl,--wrap=pbkdf2_iterations
# The replay of power cuts: docs/crash-replay.md.
REPLAY := $(BUILD)/tests/fault/crash-replay
REPLAY_OBJ := $(call obj,$(wildcard tests/fault/replay/*.c))
$(REPLAY): $(REPLAY_OBJ) $(call libs,daemon)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
# The same with names for the places where order matters: each can be left out (block/util/order.h).
MUTABLE := $(sort $(shell grep -lE 'order_left_out|q2_co_barrier|check_co_barrier' -r block --include=*.c))
MUTABLE_OBJ := $(MUTABLE:%.c=$(BUILD)/mutable/%.o)
$(BUILD)/mutable/%.o: %.c | $(GEN)/qapi/stamp
	@mkdir -p $(@D)
	$(call say,CC $< (mutable))
	$(Q)$(CC) $(CFLAGS) -DSD_MUTATE -MMD -MP -c -o $@ $<
$(REPLAY)-mutable: $(REPLAY_OBJ) $(MUTABLE_OBJ) $(call libs,daemon)
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
.SECONDARY:

.PHONY: tests-build
tests-build: $(UNIT_TESTS) $(GRAPH_TESTS) $(FUZZ_TESTS) $(REPLAY) $(REPLAY)-mutable

# Builds with all cores unless -j says otherwise; tests run on as many.
JOBS ?= $(shell nproc)
SUBMAKE = $(MAKE) --no-print-directory BUILD=$(BUILD) $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))
RUN_TESTS = $(PYTHON) tests/run.py --build $(BUILD) --jobs $(JOBS) --timeout $(if $(SAN),1200,400) $(if $(ONLY),--only '$(ONLY)')
SEEDS ?= ../shared/seeds

.PHONY: check check-asan check-seeds fuzz fuzz-build fuzz-run demo bench profile profile-run
check:
	+@$(SUBMAKE) all tests-build
	@SEEDS=$(SEEDS) $(RUN_TESTS)

check-asan:
	+@SD_TIMEOUT=60 ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=0:allocator_may_return_null=1 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 G_SLICE=always-malloc \
	$(MAKE) --no-print-directory BUILD=build-asan OPT='-O1 -g' \
	SAN='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' check

check-seeds:
	+@$(SUBMAKE) all
	@BUILD=$(BUILD) tests/iotests/run-seeds $(SEEDS)

STATES ?= 20000
SEED ?= 1
.PHONY: crash-replay mutation
mutation:
	+@$(SUBMAKE) $(REPLAY)-mutable
	@$(RUN_TESTS) --only test_mutation --verbose
crash-replay:
	+@$(SUBMAKE) $(REPLAY)
	@$(REPLAY) --states $(STATES) --seed $(SEED) $(if $(ONLY),--only '$(ONLY)')

TIME ?= 60
fuzz:
	+@$(MAKE) --no-print-directory -j$(JOBS) BUILD=build-fuzz CC=clang OPT='-O1 -g' FUZZ_MAIN= FUZZ_LDFLAGS=-fsanitize=fuzzer \
	SAN='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined' fuzz-run
fuzz-run: $(FUZZ_TESTS)
	@for t in $(if $(FUZZ),$(BUILD)/tests/fuzz/$(FUZZ),$(FUZZ_TESTS)); do mkdir -p $$t.corpus; \
	  $$t -max_total_time=$(TIME) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=$$t- -print_final_stats=1 \
	    $$t.corpus tests/fuzz/corpus/$$(basename $$t) || exit 1; done

demo:
	+@$(SUBMAKE) --silent all
	@BUILD=$(BUILD) $(PYTHON) tests/demo/demo.py

bench: $(BUILD)/tests/bench/ceiling
	+@$(SUBMAKE) --silent all
	@BUILD=$(BUILD) ROWS='$(ROWS)' $(PYTHON) tests/bench/bench.py

# Frame pointers make the stacks complete.
profile:
	+@$(MAKE) --no-print-directory BUILD=build-profile OPT='-O2 -g -fno-omit-frame-pointer' profile-run
profile-run:
	+@$(SUBMAKE) --silent all
	@BUILD=$(BUILD) ROW='$(ROW)' $(PYTHON) tests/bench/profile.py

# ---- the rest ----------------------------------------------------------------------------------------------------------
.PHONY: deps format lint docs install clean
deps:
	@sh tests/deps.sh

format:
	clang-format -i $$(git ls-files -co --exclude-standard '*.c' '*.h')

lint:
	@$(PYTHON) tests/run.py --jobs $(JOBS) --verbose lint

docs:
	@mkdir -p $(BUILD)/docs
	$(PYTHON) qapi/gen/generate.py --docs $(BUILD)/docs/qmp-reference.md $(SCHEMA)

PREFIX ?= /usr/local
install: all docs
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/doc/storage-daemon $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 755 $(BUILD)/storage-daemon $(BUILD)/storage-ctl $(DESTDIR)$(PREFIX)/bin
	install -m 644 README.md LICENSE $(wildcard storage-daemon.conf.example docs/*.md docs/*.service) $(BUILD)/docs/qmp-reference.md $(DESTDIR)$(PREFIX)/share/doc/storage-daemon
	install -m 644 $(wildcard docs/man/*.1) $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 $(wildcard docs/man/*.5) $(DESTDIR)$(PREFIX)/share/man/man5

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

endif
