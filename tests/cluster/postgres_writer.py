"""A search as its tracker sees it, in a process of its own: `postgres_writer.py URI NAME FOLDER` says its warnings."""

import hashlib
import sys
from pathlib import Path

from inlay.cluster.store import Store
from inlay.cluster.tracking import Tracker
from inlay.cluster.tracking_model import ServedModel

CODE = """
import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Model(PythonModel):
    def predict(self, context, model_input: pandas.DataFrame, params=None):
        return model_input


set_model(Model())
"""

uri, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
store = Store(folder / "w")
store.put("child/config.json", b"{}")
column = '[{"type": "string", "name": "prompt", "required": true}]'
model = ServedModel(
    name=name,
    creation=name,
    store=store.url,
    folder="child",
    mark=("child/config.json", hashlib.sha256(b"{}").hexdigest()),
    weights=[("model.safetensors", store.put_blob(name.encode()))],
    weights_bytes=len(name),
    uploaded=True,
    code=CODE,
    signature={"inputs": column, "outputs": column},
    example={"prompt": ["Once"]},
    requirements=["mlflow"],
    params={},
    tags={},
    dataset=("report", "a" * 36),
    group="evaluate/",
    register="shared-child",
    alias="champion",
)
tracker = Tracker(uri, "shared", lambda text: print(text, flush=True), spool=folder / "spool")
tracker.start(name)
runs = [tracker, *(tracker.child(each, each) for each in ("child", "uniform", "depth"))]
for step in range(200):
    for run in runs:
        run.metrics({"loss": step / 7}, step=step)
runs[1].metrics({"evaluate/kl_nats": 0.5})
runs[1].model(model)
for run in runs[1:]:
    run.end()
tracker.flush(400)  # a search that is going to write for hours; whoever comes second waits for the first's tables
tracker.end()
