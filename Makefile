# Prime Spark. `make` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
LAB := $(PY) -m lab
# What the runs of `make test-fleet` recorded; tests/check compares them.
RECORD := $(or $(PRIME_SPARK_LAB_DIR),/var/lib/prime-spark-lab)/site-runs.jsonl
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help demo site test test-full check test-services test-fleet test-faults test-panels test-alerts test-lab \
        lab-up lab-down lab-destroy lab-status lab-ssh lab-console lab-reboot lab-cut lab-heal lab-tools dashboards \
        bench bench-render bench-converge bench-prove bench-demo bench-check bench-test bench-fleet bench-idle bench-ingest \
        bench-telemetry bench-api bench-memory mutate secrets rotate api-user pin-images wireguard-client lock

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.ready: requirements/uv.txt requirements/dev.txt files/python_services/pyproject.toml tools/bootstrap
	@tools/bootstrap

demo: lab-up ## The whole fleet as real hosts on this machine, provisioned by site.yml
	ansible-playbook site.yml

site: $(VENV)/.ready ## Run site.yml on the lab, ARGS="--tags wireguard --limit primecore1"
	ansible-playbook site.yml $(ARGS)

test: check test-services lab-destroy test-fleet test-faults test-lab ## Everything, from bare hosts: what CI runs

test-full: ## As test, every fault in its long form (hours)
	PRIME_SPARK_FULL=1 $(MAKE) test

$(VENV)/.prometheus: tools/prometheus-tools $(VENV)/.ready
	@tools/prometheus-tools

check: $(VENV)/.ready $(VENV)/.prometheus ## Lint, types and unit tests; no servers, no root
	tools/check

test-services: $(VENV)/.ready lab-tools ## The Python services against real servers; branch coverage below 85 % fails
	$(PY) -m lab.images
	$(PY) -m pytest -q tests/images tests/releases tests/panels
	cd files/python_services && rm -rf .coverage && mkdir .coverage && \
	  PYTHONPATH=$(CURDIR) coverage run -m pytest -q -n 2 --dist loadfile tests/unit tests/services && \
	  coverage combine --quiet && coverage report

mutate: $(VENV)/.ready lab-tools ## Break the services' code line by line: a test has to notice each time; ARGS="--only api/auth"
	$(PY) -m lab.images
	$(PY) files/python_services/tests/mutations/run.py $(ARGS)

test-fleet: lab-up ## The lab: site.yml from bare hosts (checked first), again for idempotence, then testinfra
	@rm -f $(RECORD)
	COLUMNS=150 PRIME_SPARK_RECORD=$(RECORD) molecule test -s default --destroy=never
	$(PY) -m pytest -q tests/check
	$(PY) -m pytest -q tests/fleet

test-faults: lab-up ## Cuts, kills and reboots on the provisioned lab, killed runs: everything recovers
	$(PY) -m pytest -q tests/faults

test-panels: lab-up ## Every panel's query against the provisioned lab under load: rows returned
	$(PY) -m tests.panels

test-alerts: lab-up ## Every fault really caused on the lab: seconds until its alert fires and resolves
	$(PY) -m tests.alerts

test-lab: lab-up ## The lab itself: nothing leaks, nothing of the machine changes, it survives kill -9
	$(PY) -m pytest -q tests/lab

lab-tools:
	@lab/install-tools

lab-up: $(VENV)/.ready lab-tools ## Boot the lab's five hosts (bare at first)
	@$(LAB) up

lab-down: $(VENV)/.ready ## Stop the lab, keep its disks
	@$(LAB) down

lab-destroy: $(VENV)/.ready ## Stop the lab and remove its disks and secrets, keep the image cache
	@$(LAB) destroy

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

bench-prove: $(VENV)/bench/.ready ## That bench-converge compares like with like: pyinfra mends drifts of every kind
	$(PY) -m tools.bench.converge --prove

bench-demo: $(VENV)/.ready ## make demo with nothing cached, with images cached, with disks kept; deletes the lab first
	$(PY) -m tools.bench.timed demo

bench-fleet: $(VENV)/bench/.ready lab-tools ## Seconds per host on many light hosts, in a lab of its own: make bench-fleet HOSTS=50
	$(PY) -m tools.bench.fleet --hosts $(or $(HOSTS),50)

bench-check: $(VENV)/.ready ## Seconds of make check
	$(PY) -m tools.bench.timed check

bench-test: $(VENV)/.ready ## Seconds of make test
	$(PY) -m tools.bench.timed test

bench-idle: $(VENV)/.ready ## The lab at rest: CPU, process starts and memory of every unit and container: ARGS="--seconds 60"
	$(PY) -m tools.bench_idle $(ARGS)

bench-ingest: $(VENV)/.ready lab-tools ## Ingest from Kafka to committed rows, beside COPY, executemany and single rows: ARGS="--backlog"
	$(PY) -m lab.images
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/services/bench_ingest.py $(ARGS)

bench-telemetry: $(VENV)/.ready lab-tools ## What the collector costs a small host: CPU per sample, rate and memory of a replay
	$(PY) -m lab.images
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/services/bench_telemetry.py $(ARGS)

bench-api: $(VENV)/.ready lab-tools ## Requests per second and latency of the API against a bare FastAPI application
	$(PY) -m lab.images
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/services/bench_api.py $(ARGS)

bench-memory: $(VENV)/.ready lab-tools ## What a stopped Kafka costs a memory get: p99 with Kafka up and down, in turns
	$(PY) -m lab.images
	cd files/python_services && PYTHONPATH=$(CURDIR) ../../$(PY) tests/services/bench_memory.py $(ARGS)

secrets: $(VENV)/.ready ## Make the secrets an inventory lacks: make secrets INVENTORY=inventories/production
	$(PY) tools/make_secrets.py --inventory $(or $(INVENTORY),inventories/lab)

rotate: $(VENV)/.ready ## Renew a secret everywhere: make rotate SECRET=vault_... [INVENTORY=...]; without SECRET list them
	$(PY) tools/rotate_secret.py --inventory $(or $(INVENTORY),inventories/lab) $(SECRET) $(ARGS)

api-user: $(VENV)/.ready ## Add or change a user of the API: make api-user INVENTORY=inventories/production NAME=alice ROLE=admin
	$(PY) tools/api_user.py --inventory $(or $(INVENTORY),inventories/lab) --role $(or $(ROLE),viewer) $(ARGS) $(NAME)

dashboards: $(VENV)/.ready ## Write Grafana's dashboards from tools/dashboards
	$(PY) -m tools.dashboards

pin-images: $(VENV)/.ready ## Write the digests of an inventory's images: make pin-images INVENTORY=inventories/production
	$(PY) tools/pin_images.py --inventory $(or $(INVENTORY),inventories/production) $(ARGS)

wireguard-client: $(VENV)/.ready ## A phone for the VPN: make wireguard-client NAME=phone INVENTORY=inventories/production
	@$(PY) tools/wireguard_client.py --inventory $(or $(INVENTORY),inventories/lab) --name "$(NAME)" $(if $(ADDRESS),--address $(ADDRESS)) $(if $(PUBLIC_KEY),--public-key $(PUBLIC_KEY))

lock: $(VENV)/.ready ## Lock the controller's and the services' dependencies anew
	tools/lock
