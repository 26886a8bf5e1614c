"""Checks rendered Kubernetes manifests: `manifests.py CABLEWAY FILE...`.

Each file is what `helm template` made of the chart with one set of values. Every object is validated against the schema of its
kind, strictly; the server's own options are checked by the server; and what must fit together is looked at. An object whose kind no
validator here knows is named. The last lines are read by `cargo xtask`.
"""

import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

# Kinds of others (custom resources): their schemas come in no package that can be installed here.
WITHOUT_SCHEMA = {("monitoring.coreos.com/v1", "ServiceMonitor")}


def check_schema(thing):
    kind = (thing["apiVersion"], thing["kind"])
    if kind in WITHOUT_SCHEMA:
        print(f"    {kind[1]}: not validated, its schema is not to be had here")
        assert set(thing["spec"]) == {"selector", "endpoints"}, thing["spec"]
        return
    # The newest schemas that the package has.
    kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)


def one(things, kind):
    found = [thing for thing in things if thing["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def seconds(text):
    return int(text.removesuffix("s"))


def check_server_options(things, server):
    (name, text), = one(things, "ConfigMap")["data"].items()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{name}"
        with open(path, "w") as file:
            file.write(text)
        said = subprocess.run([server, "config", "--config", path], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    container = one(things, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][-1] == f"{container['volumeMounts'][0]['mountPath']}/{name}", container["args"]


def check_drain(things):
    pod = one(things, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    options = yaml.safe_load(next(iter(one(things, "ConfigMap")["data"].values())))
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = waits + seconds(options["app"]["shutdown_timeout"])
    assert pod["terminationGracePeriodSeconds"] > needed, (pod["terminationGracePeriodSeconds"], needed)
    # Time for everybody to stop sending new clients.
    assert waits >= 1


def check_selectors(things):
    deployment = one(things, "Deployment")
    labels = deployment["metadata"]["labels"].items() & deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [deployment["spec"]["selector"]["matchLabels"], one(things, "Service")["spec"]["selector"]]
    selectors += [thing["spec"]["selector"]["matchLabels"] for thing in things if thing["kind"] in ("PodDisruptionBudget", "ServiceMonitor")]
    affinity = deployment["spec"]["template"]["spec"].get("affinity", {}).get("podAntiAffinity", {})
    for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []):
        selectors.append(term["labelSelector"]["matchLabels"])
    for term in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", []):
        selectors.append(term["podAffinityTerm"]["labelSelector"]["matchLabels"])
    assert affinity, "pods are not kept apart"
    for selector in selectors:
        assert selector.items() <= labels, selector


def check_probes_and_rights(things):
    pod = one(things, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["sysctls"], "no kernel setting"
    assert container["securityContext"]["readOnlyRootFilesystem"] and not container["securityContext"]["allowPrivilegeEscalation"]


def main(server, files):
    passed = failed = 0
    for file in files:
        with open(file) as text:
            things = [thing for thing in yaml.safe_load_all(text) if thing]
        checks = [(f"{thing['kind']} {thing['metadata']['name']} is valid", check_schema, [thing]) for thing in things]
        checks += [
            ("the server takes its options", check_server_options, [things, server]),
            ("the drain has its time", check_drain, [things]),
            ("selectors find the pods", check_selectors, [things]),
            ("probes and rights are right", check_probes_and_rights, [things]),
        ]
        print(f"{file}: {len(things)} objects")
        for name, check, arguments in checks:
            try:
                check(*arguments)
                passed += 1
                print(f"ok - {name}")
            except Exception as error:  # whatever it is, it is a failed check
                failed += 1
                print(f"not ok - {name}\n    {type(error).__name__}: {error}")
    print(f"# pass {passed}\n# fail {failed}")
    return failed == 0 and passed > 0


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1], sys.argv[2:]) else 1)
