# lua-ipc. `make test` and `make demo` are the whole set-up: .ci/install brings
# what a target needs and the system lacks. `make help` lists the targets.

# Looked up when first used, which is after .ci/install has run.
LUA     ?= $(shell .ci/install --lua)
LUA_INC ?= $(shell .ci/install --headers)
BUILD   ?= build
PREFIX  ?= /usr/local
SECONDS ?= 20
BENCH   ?= bench/run.lua

INST_LUADIR ?= $(PREFIX)/share/lua/5.4
INST_LIBDIR ?= $(PREFIX)/lib/lua/5.4

CFLAGS ?= -O2 -g -fno-plt
WARN    = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
INCLUDE = $(addprefix -isystem ,$(filter-out /usr/include,$(LUA_INC)))
SHARED  = $(if $(filter Darwin,$(shell uname)),-bundle -undefined dynamic_lookup,-shared)

CORE    = $(BUILD)/ipc/core.so
SOURCES = $(sort $(wildcard src/*.c))
HEADERS = $(wildcard src/*.h)
OBJECTS = $(SOURCES:src/%.c=$(BUILD)/obj/%.o)
EXTRA_C = $(wildcard spec/*/*.[ch] bench/*.[ch] bench/peers/*.[ch] bench/peers/*.cpp)
FAULTS  = $(patsubst %.c,$(BUILD)/fault/%.so,$(notdir $(wildcard spec/fault/*.c)))
# Those with a main are programs, the others modules.
STORM_C = $(filter-out spec/storm/ring.c,$(wildcard spec/storm/*.c)) # that is built by spec/storm/arch
STORM_P = $(if $(STORM_C),$(shell grep -lw '^int main' $(STORM_C)))
STORMS  = $(STORM_P:spec/storm/%.c=$(BUILD)/storm/%) \
          $(patsubst spec/storm/%.c,$(BUILD)/storm/%.so,$(filter-out $(STORM_P),$(STORM_C)))
HELPERS = $(patsubst %.c,$(BUILD)/spec/%.so,$(filter-out joiner.c,$(notdir $(wildcard spec/support/*.c)))) \
          $(BUILD)/spec/joiner
FUZZERS = $(patsubst %.c,$(BUILD)/fuzz/%,$(notdir $(wildcard spec/fuzz/*.c)))

# Lua finds this checkout before anything installed, from any directory. busted
# puts its own C path in front, so it is told too. RUN is what the suite runs under.
LUA_PATH  := $(CURDIR)/lua/?.lua;$(CURDIR)/lua/?/init.lua;$(addsuffix ;,$(or $(LUA_PATH_5_4),$(LUA_PATH)));
LUA_CPATH := $(CURDIR)/$(BUILD)/?.so;$(addsuffix ;,$(or $(LUA_CPATH_5_4),$(LUA_CPATH)));
export LUA_PATH LUA_CPATH
unexport LUA_PATH_5_4 LUA_CPATH_5_4
BUSTED = $(RUN) $(LUA) .ci/busted.lua --ignore-lua --cpath='$(BUILD)/?.so' --helper=.ci/lean.lua $(ARGS)

build: $(CORE) ## compile src/ into build/ipc/core.so (the default)

$(CORE): $(OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) $(SHARED) -o $@ $^ -pthread

$(BUILD)/obj/%.o: src/%.c Makefile | need
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -fPIC -fvisibility=hidden -pthread $(WARN) $(INCLUDE) $(CPPFLAGS) -MMD -MP -c -o $@ $<

need: # all that the targets on this command line need, at once
	@CC='$(CC)' .ci/install $(or $(MAKECMDGOALS),build)

demo: build $(BUILD)/text.txt ## install what is missing, build, run the demonstration
	$(LUA) examples/demo.lua $(BUILD)/text.txt

$(BUILD)/text.txt: | need
	@mkdir -p $(@D)
	.ci/text $@

test: build $(HELPERS) ## install what is missing, build, run the specs (ARGS='--filter=...')
	$(BUSTED)

$(BUILD)/spec/%.so: spec/support/%.c | need
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -fPIC $(WARN) $(INCLUDE) $(SHARED) -o $@ $<

$(BUILD)/spec/joiner: spec/support/joiner.c | need # or nothing, where its system calls are not
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WARN) -o $@ $< $(if $(filter Linux,$(shell uname)),,|| true)

peers: need ## install Neovim and other foreign peers of calls, run their specs
	$(MAKE) test ARGS=spec/rpc_peers_spec.lua

bench: build ## measure (BENCH=bench/values.lua for one, ARGS=...)
	$(LUA) $(BENCH) $(ARGS)

doc: need ## write the reference manual to build/doc
	ldoc --quiet --fatalwarnings --dir $(BUILD)/doc .

all: build doc ## build, doc

# ---- harder tests ----------------------------------------------------------

SANITIZE = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
LIBSAN   = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)
REPORT   = $(CURDIR)/build/asan/report

portable: need ## the specs with what other systems than Linux get
	$(MAKE) test BUILD=build/portable CPPFLAGS=-DIPC_PORTABLE

# What LeakSanitizer says in a child of fork(2) of threads that only its parent has.
ABSENT = Running thread [0-9]* was not suspended. False leaks are possible.$$

# Without vfork: of a stack that is left by exec ASan keeps what it last knew.
asan: need ## the specs under AddressSanitizer, LeakSanitizer and UBSan
	@rm -f $(REPORT).*
	IPC_WITHOUT="$${IPC_WITHOUT:+$$IPC_WITHOUT,}vfork" \
	ASAN_OPTIONS=log_path=$(REPORT) UBSAN_OPTIONS=print_stacktrace=1:log_path=$(REPORT) \
	LSAN_OPTIONS=suppressions=$(CURDIR)/spec/fault/lsan.supp:print_suppressions=0 \
	$(MAKE) test BUILD=build/asan CFLAGS='$(SANITIZE)' RUN='env LD_PRELOAD="$(LIBSAN)"'; \
	status=$$?; ! grep -hv '$(ABSENT)' $(REPORT).* 2>/dev/null && exit $$status # children report there too

valgrind: need ## the specs under valgrind, which knows neither pidfds nor CLONE_VM
	$(MAKE) test RUN='env IPC_WITHOUT=vfork,pidfd valgrind -q --error-exitcode=99 --leak-check=full \
	  --errors-for-leak-kinds=definite --show-leak-kinds=definite'

fault: build $(FAULTS) $(HELPERS) ## the specs with failing system calls and allocations
	LUA=$(LUA) BUILD=$(BUILD) spec/fault/run $(ARGS)

$(BUILD)/fault/%.so: spec/fault/%.c spec/fault/caller.h | need
	@mkdir -p $(@D)
	$(CC) -O1 -g -fPIC $(WARN) $(INCLUDE) -shared -o $@ $< -ldl -pthread

storm: build $(STORMS) ## kill, stop and race processes in shared memory (LONG=1 for all of it)
	LUA=$(LUA) BUILD=$(BUILD) spec/storm/run $(if $(LONG),--long) $(ARGS)

$(BUILD)/storm/%.so: spec/storm/%.c | need
	@mkdir -p $(@D)
	$(CC) -O1 -g -fPIC $(WARN) $(INCLUDE) $(SHARED) -o $@ $< -pthread

$(BUILD)/storm/%: spec/storm/%.c | need
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WARN) $(INCLUDE) -o $@ $< -pthread

storm-arch: need ## the ring on other machines and C libraries, as far as they are here (LONG=1: all)
	LONG=$(LONG) spec/storm/arch $(ARGS)

storm-asan: need # one program of spec/storm (STORM=scribble) with the core under the sanitizers
	@rm -f $(REPORT).*
	@$(MAKE) -s build BUILD=build/asan CFLAGS='$(SANITIZE)'
	@if [ -f spec/storm/$(STORM).c ]; then $(MAKE) -s build/storm/$(STORM); fi
	@LUA_CPATH='$(CURDIR)/build/asan/?.so;;' STORM_ASAN=1 LD_PRELOAD="$(LIBSAN)" \
	ASAN_OPTIONS=log_path=$(REPORT):detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:log_path=$(REPORT) \
	$(LUA) spec/storm/$(STORM).lua; status=$$?; ! cat $(REPORT).* 2>/dev/null && exit $$status

fuzz: $(FUZZERS:=.run) ## fuzz the decoders, SECONDS=20 each

$(FUZZERS:=.run): %.run: %
	@mkdir -p $*.corpus
	$* -max_total_time=$(SECONDS) -timeout=10 -verbosity=0 -print_final_stats=1 \
	  -artifact_prefix=$*- $*.corpus $(wildcard spec/fuzz/$(*F).corpus)

$(BUILD)/fuzz/%: spec/fuzz/%.c $(SOURCES) $(HEADERS) $(wildcard spec/fuzz/*.h) | need
	@mkdir -p $(@D)
	clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Isrc \
	  $(INCLUDE) -o $@ $(filter %.c,$^) $(if $(filter %lua5.4,$(INCLUDE)),-llua5.4,-llua) -lm -ldl -pthread

model: need ## the ring as a model, every order of its steps (LONG=1 for more)
	spec/storm/model $(ARGS)

# Other C libraries and machines: they compile. Debian's lua.h includes a file
# from the native machine's directory, hence the -idirafter.
OTHER = CPPFLAGS='-idirafter /usr/include -idirafter /usr/include/$(shell gcc -print-multiarch)' build

musl: need ## compile with musl
	$(MAKE) BUILD=build/musl CC=musl-gcc $(OTHER)

m32: need ## compile for 32 bits
	$(MAKE) BUILD=build/m32 CC='gcc -m32' $(OTHER)

cross: ## compile with the cross compilers that are installed (s390x, aarch64, arm, riscv64)
	@for m in s390x-linux-gnu aarch64-linux-gnu arm-linux-gnueabihf riscv64-linux-gnu; do \
	  if command -v $$m-gcc >/dev/null; then $(MAKE) BUILD=build/$$m CC=$$m-gcc $(OTHER) || exit; \
	  else echo "no $$m-gcc"; fi; done

# ---- lint: every step is a target, `make -k lint-tidy lint-lua` runs some ----

LINTS = format gcc clang tidy cppcheck lua doc rockspec

lint: need ## every static check, to the end even if one fails
	@$(MAKE) -k -j2 --output-sync=target --no-print-directory $(LINTS:%=lint-%)

lint-format:
	clang-format --dry-run -Werror $(SOURCES) $(HEADERS) $(EXTRA_C)

format: need ## let clang-format have its way
	clang-format -i $(SOURCES) $(HEADERS) $(EXTRA_C)

lint-gcc lint-clang: lint-%:
	$* -O2 -pthread $(WARN) -Werror $(INCLUDE) -fsyntax-only $(SOURCES)

lint-tidy: $(SOURCES:src/%.c=build/lint/%.tidy)

build/lint/%.tidy: src/%.c $(HEADERS) .clang-tidy
	@mkdir -p $(@D)
	clang-tidy --quiet $< -- -pthread $(WARN) $(INCLUDE) -include .ci/noreturn.h && touch $@

lint-cppcheck:
	cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability \
	  --inline-suppr --suppress=missingIncludeSystem --library=posix src

lint-lua:
	luacheck --quiet --no-color . .ci

lint-doc:
	ldoc --quiet --fatalwarnings --dir $(BUILD)/lint/doc .

lint-rockspec:
	$(LUA) .ci/rockspec.lua

rockspec: ## bring the rockspec's list of files up to date
	$(LUA) .ci/rockspec.lua write

# ---- installation ----------------------------------------------------------

install: build ## install below PREFIX (DESTDIR, INST_LUADIR, INST_LIBDIR)
	mkdir -p '$(DESTDIR)$(INST_LUADIR)' '$(DESTDIR)$(INST_LIBDIR)/ipc'
	cp -R lua/ipc '$(DESTDIR)$(INST_LUADIR)'
	cp $(CORE) '$(DESTDIR)$(INST_LIBDIR)/ipc'

uninstall: ## remove what install installed
	rm -rf '$(DESTDIR)$(INST_LUADIR)/ipc' '$(DESTDIR)$(INST_LIBDIR)/ipc'

clean: ## remove what was built, luarocks' leftovers included
	rm -rf build src/*.o ipc lua_modules *.rock

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

-include $(OBJECTS:.o=.d)

.SECONDARY: $(FUZZERS)
.PHONY: build need demo test peers bench doc all format portable asan valgrind fault storm storm-arch storm-asan fuzz \
  model musl m32 cross lint $(LINTS:%=lint-%) rockspec install uninstall clean help $(FUZZERS:=.run)
