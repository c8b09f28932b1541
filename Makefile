# storage-daemon: one non-recursive Makefile. Sources are found by folder; every storey is one archive, and a program or
# test links its storey and those below, so a wrong dependency does not link.
BUILD ?= build
CC ?= gcc
PKGS := glib-2.0 gio-2.0 json-glib-1.0 liburing libnbd zlib libzstd
OPT ?= -O2 -g
SAN ?=
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS))
PKG_LIBS := $(shell pkg-config --libs $(PKGS))
CFLAGS += -std=gnu11 $(OPT) $(SAN) -Wall -Wextra -Werror -Wno-unused-parameter -Wmissing-prototypes \
	-Wstrict-prototypes -Wvla -fno-strict-aliasing -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -pthread -I. -I$(BUILD)/gen $(PKG_CFLAGS)
LDFLAGS += $(SAN) -pthread
LDLIBS += $(PKG_LIBS)
PYTHON ?= /usr/bin/python3

STOREYS := util aio qapi graph drivers jobs export daemon
DIR_util := block/util
DIR_aio := block/aio
DIR_qapi := qapi/rt
DIR_graph := block/graph
DIR_drivers := block/drivers block/drivers/qcow2 block/drivers/nbd
DIR_jobs := block/jobs
DIR_export := block/export
DIR_daemon := daemon

.PHONY: all
all: $(BUILD)/storage-daemon $(BUILD)/storage-ctl

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
SRC_graph := $(wildcard $(DIR_graph)/*.c)
SRC_drivers := $(DRIVER_SRCS) $(GEN)/drivers.c
SRC_jobs := $(wildcard $(DIR_jobs)/*.c)
SRC_export := $(wildcard $(DIR_export)/*.c)
SRC_daemon := $(filter-out daemon/main.c daemon/ctl%.c,$(wildcard daemon/*.c)) $(GEN)/qapi/commands.c

obj = $(patsubst $(GEN)/%.c,$(BUILD)/obj/gen/%.o,$(patsubst %.c,$(BUILD)/obj/%.o,$(filter-out $(GEN)/%,$(1))) $(filter $(GEN)/%,$(1)))
$(BUILD)/obj/gen/%.o: $(GEN)/%.c $(GEN)/qapi/stamp
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/%.o: %.c $(GEN)/qapi/stamp
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

define archive
OBJ_$(1) := $$(call obj,$$(SRC_$(1)))
$(BUILD)/lib$(1).a: $$(OBJ_$(1))
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(foreach s,$(STOREYS),$(eval $(call archive,$(s))))

# The archives of a storey and of all below it, top first.
below_util := util
below_aio := aio $(below_util)
below_qapi := qapi $(below_aio)
below_graph := graph $(below_qapi)
below_drivers := drivers $(below_graph)
below_jobs := jobs $(below_drivers)
below_export := export $(below_jobs)
below_daemon := daemon $(below_export)
libs = $(patsubst %,$(BUILD)/lib%.a,$(below_$(1)))

$(BUILD)/storage-daemon: $(BUILD)/obj/daemon/main.o $(call libs,daemon)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
CTL_SRCS := $(wildcard daemon/ctl*.c)
$(BUILD)/storage-ctl: $(call obj,$(CTL_SRCS)) $(call libs,qapi)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# ---- tests -----------------------------------------------------------------------------------------------------------
UNIT_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/*.c))
GRAPH_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/graph/test-*.c))
define unit_rule
$(BUILD)/tests/unit/$(1)-%: $(BUILD)/obj/tests/unit/$(1)-%.o $(call libs,$(1))
	@mkdir -p $$(@D)
	$$(CC) $$(LDFLAGS) -o $$@ $$^ $$(LDLIBS) -lcmocka
endef
$(foreach s,$(STOREYS),$(eval $(call unit_rule,$(s))))
GRAPH_HELPERS := $(call obj,$(filter-out tests/graph/test-%,$(wildcard tests/graph/*.c)))
$(BUILD)/tests/graph/test-%: $(BUILD)/obj/tests/graph/test-%.o $(GRAPH_HELPERS) $(call libs,graph)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
.SECONDARY:

.PHONY: tests-build
tests-build: $(UNIT_TESTS) $(GRAPH_TESTS)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
