# Prime Spark. `make` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
LAB := $(PY) -m lab
# The stages of the tests, their commands and order: tests/stages.toml.
STAGES := $(PY) tools/stages.py
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Without bytecode on disk every run of Ansible compiles all of Ansible again.
unexport PYTHONDONTWRITEBYTECODE

# Every target is an action, none is a file.
.PHONY: $(shell sed -n 's/^\([a-z][a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.ready: requirements/uv.txt requirements/dev.txt files/python_services/pyproject.toml tools/bootstrap
	@tools/bootstrap

demo: lab-up ## Boot the whole fleet on this machine and provision it with site.yml
	ansible-playbook site.yml

site: $(VENV)/.ready ## Run site.yml on the lab, ARGS="--tags wireguard --limit primecore1"
	ansible-playbook site.yml $(ARGS)

test: $(VENV)/.ready ## What CI runs, from bare hosts; ends with the seconds of each stage
	$(STAGES) test

test-full: $(VENV)/.ready ## All long forms as well (hours); continues where it ended: ARGS="--again" starts over
	$(STAGES) full --keep-going $(ARGS)

test-changed: $(VENV)/.ready ## The stages that changes since BASE=origin/main concern: ARGS="--list" names them
	$(STAGES) changed --base $(or $(BASE),origin/main) $(ARGS)

drift: $(VENV)/.ready ## Compare every host with what the last run left: ARGS="--json"; INVENTORY=inventories/production
	@$(PY) tools/drift.py --inventory $(or $(INVENTORY),inventories/lab) $(ARGS)

$(VENV)/.prometheus: tools/prometheus-tools $(VENV)/.ready
	@tools/prometheus-tools

check: $(VENV)/.ready $(VENV)/.prometheus ## Lint, types and unit tests; no servers, no root
	tools/check

test-services: $(VENV)/.ready ## Images, and the Python services against real servers; branch coverage below 85 % fails
	$(STAGES) only images images-tests coverage

mutate: $(VENV)/.ready $(VENV)/.prometheus lab-tools ## Break the code line by line: a test has to notice each time; ARGS="--only api/auth"
	$(PY) -m lab.image_builds
	$(PY) tools/mutate.py $(ARGS)

test-fleet: $(VENV)/.ready ## The lab: site.yml from bare hosts (checked first), again for idempotence, then testinfra
	$(STAGES) only site predictions fleet

test-faults: lab-up ## Cuts, kills and reboots on the provisioned lab, killed runs: everything recovers
	$(PY) -m pytest -q tests/system/faults

test-panels: lab-up ## Run every panel's query against the provisioned lab under load: rows returned
	$(PY) -m tests.system.panels

test-alerts: lab-up ## Cause every fault on the lab: seconds until its alert fires and resolves
	$(PY) -m tests.system.alerts

test-lab: $(VENV)/.ready ## The lab itself: nothing leaks, the machine stays unchanged, it survives kill -9
	$(STAGES) only lab

molecule: $(VENV)/.ready ## Every role's scenario on the snapshot `converged` (make lab-save NAME=converged); ROLES="nas redis"
	@for role in $(or $(ROLES),$(notdir $(patsubst %/hosts.yml,%,$(wildcard molecule/*/hosts.yml)))); do \
	  molecule reset -s $$role && molecule test -s $$role --destroy=never || exit 1; done

lab-tools:
	@lab/install-tools

# Neither waits for the other.
lab-ready:
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.ready lab-tools

lab-up: lab-ready ## Boot the lab's five hosts (bare at first)
	@$(LAB) up

lab-down: $(VENV)/.ready ## Stop the lab, keep its disks
	@$(LAB) down

lab-destroy: $(VENV)/.ready ## Stop the lab and remove disks, snapshots and secrets, keep the image cache
	@$(LAB) destroy

lab-save: $(VENV)/.ready ## Keep the hosts as they are now, as a snapshot: make lab-save NAME=converged
	@$(LAB) save $(NAME) $(if $(KEY),--key $(KEY))

lab-restore: lab-ready ## Bring a snapshot's hosts back: make lab-restore NAME=converged
	@$(LAB) restore $(NAME) $(if $(KEY),--key $(KEY))

lab-snapshots: $(VENV)/.ready ## List the snapshots
	@$(LAB) snapshots

lab-forget: $(VENV)/.ready ## Delete a snapshot: make lab-forget NAME=converged
	@$(LAB) forget $(NAME)

lab-status: $(VENV)/.ready ## The lab's hosts in a table
	@$(LAB) status

lab-ssh: $(VENV)/.ready ## Log in to a host: make lab-ssh HOST=primecore1
	@$(LAB) ssh $(HOST)

lab-console: $(VENV)/.ready ## A host's console: make lab-console HOST=primecore1
	@$(LAB) console $(HOST)

lab-reboot: $(VENV)/.ready ## Reboot a host: make lab-reboot HOST=primecore1
	@$(LAB) reboot $(HOST)

lab-cut: $(VENV)/.ready ## Cut a host off the network: make lab-cut HOST=primecore1
	@$(LAB) cut $(HOST)

lab-heal: $(VENV)/.ready ## Undo lab-cut
	@$(LAB) heal $(HOST)

bench: $(VENV)/.ready ## Every benchmark, into docs/benchmarks.json and the tables: ARGS="--only converge,api"
	$(PY) -m tools.bench run $(ARGS)

bench-render: $(VENV)/.ready ## The tables of the documents from docs/benchmarks.json
	$(PY) -m tools.bench render

# pyinfra has an environment of its own: nothing else needs it.
$(VENV)/bench/.ready: requirements/bench.txt $(VENV)/.ready
	@rm -rf $(VENV)/bench && $(PY) -m venv $(VENV)/bench
	@$(VENV)/bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

bench-converge: $(VENV)/bench/.ready ## site.yml on the converged lab, in turns with pyinfra: ratio, module runs
	$(PY) -m tools.bench.converge $(ARGS)

bench-prove: $(VENV)/bench/.ready ## Show that bench-converge compares like with like: pyinfra repairs drifts of every kind
	$(PY) -m tools.bench.converge --prove

bench-demo: $(VENV)/.ready ## make demo with nothing cached, with images cached, with disks kept; deletes the lab first
	$(PY) -m tools.bench.timed demo

bench-fleet: $(VENV)/bench/.ready lab-tools ## Seconds per host on many light hosts, in a lab of its own: make bench-fleet HOSTS=50
	$(PY) -m tools.bench.fleet --hosts $(or $(HOSTS),50)

bench-check: $(VENV)/.ready ## Seconds of make check
	$(PY) -m tools.bench.timed check

bench-test: $(VENV)/.ready ## Seconds of make test
	$(PY) -m tools.bench.timed test

bench-idle: $(VENV)/.ready ## The idle lab: CPU, process starts and memory of every unit and container: ARGS="--seconds 60"
	$(PY) -m tools.bench_idle $(ARGS)

bench-ingest: $(VENV)/.ready lab-tools ## Ingest from Kafka to committed rows, beside COPY, executemany and single rows: ARGS="--backlog"
	$(PY) -m lab.image_builds
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/integration/bench_ingest.py $(ARGS)

bench-telemetry: $(VENV)/.ready lab-tools ## Cost of the collector on a small host: CPU per sample, rate and memory of a replay
	$(PY) -m lab.image_builds
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/integration/bench_telemetry.py $(ARGS)

bench-api: $(VENV)/.ready lab-tools ## Requests per second and latency of the API against a bare FastAPI application
	$(PY) -m lab.image_builds
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/integration/bench_api.py $(ARGS)

bench-memory: $(VENV)/.ready lab-tools ## Cost of a stopped Kafka for a memory get: p99 with Kafka up and down, in turns
	$(PY) -m lab.image_builds
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/integration/bench_memory.py $(ARGS)

secrets: $(VENV)/.ready ## Generate the secrets that an inventory lacks: make secrets INVENTORY=inventories/production
	$(PY) tools/make_secrets.py --inventory $(or $(INVENTORY),inventories/lab)

rotate: $(VENV)/.ready ## Rotate a secret everywhere: make rotate SECRET=vault_... [INVENTORY=...]; without SECRET list them
	$(PY) tools/rotate_secret.py --inventory $(or $(INVENTORY),inventories/lab) $(SECRET) $(ARGS)

api-user: $(VENV)/.ready ## Add or change a user of the API: make api-user INVENTORY=inventories/production NAME=alice ROLE=admin
	$(PY) tools/api_user.py --inventory $(or $(INVENTORY),inventories/lab) --role $(or $(ROLE),viewer) $(ARGS) $(NAME)

screenshots: $(VENV)/.ready lab-tools ## Take the pictures of the hook's page in docs/images, by Debian's Chromium
	$(PY) files/python_services/tests/integration/hook_screenshots.py

dashboards: $(VENV)/.ready ## Write Grafana's dashboards from tools/dashboards
	$(PY) -m tools.dashboards

$(VENV)/docs/.ready: requirements/docs.txt $(VENV)/.ready
	@rm -rf $(VENV)/docs && $(PY) -m venv $(VENV)/docs
	@$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

docs: $(VENV)/docs/.ready ## Build the documents as a site with search, into .site/index.html; a warning fails
	@$(VENV)/docs/bin/properdocs build --strict

role-pages: $(VENV)/.ready ## Write docs/roles from specifications, catalogue and tasks
	$(PY) -m tools.role_pages

pin-images: $(VENV)/.ready ## Write the digests of an inventory's images: make pin-images INVENTORY=inventories/production
	$(PY) tools/pin_images.py --inventory $(or $(INVENTORY),inventories/production) $(ARGS)

wireguard-client: $(VENV)/.ready ## Add a phone to the VPN: make wireguard-client NAME=phone INVENTORY=inventories/production
	@$(PY) tools/wireguard_client.py --inventory $(or $(INVENTORY),inventories/lab) --name "$(NAME)" $(if $(ADDRESS),--address $(ADDRESS)) $(if $(PUBLIC_KEY),--public-key $(PUBLIC_KEY))

release: $(VENV)/.ready ## Tag the version of galaxy.yml; refused while something is missing: ARGS="--check"
	$(PY) tools/release.py $(ARGS)

lock: $(VENV)/.ready ## Resolve and lock the controller's and the services' dependencies again
	tools/lock
