"""Agents of Stable-Baselines3: zip archives of a policy's state dict, JSON hyper-parameters, and evaluations beside.

Values that the archive keeps as cloudpickle stay untouched.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from weightspace.zoo.importers.found import Plain, Unreadable, configuration, finite
from weightspace.zoo.importers.states import FileContent, state_in
from weightspace.zoo.importers.torch_file import load

_SETTINGS = (
    "learning_rate", "gamma", "gae_lambda", "n_steps", "batch_size", "n_epochs", "ent_coef", "vf_coef", "tau",
    "max_grad_norm", "buffer_size", "learning_starts", "gradient_steps", "target_update_interval",
    "exploration_fraction", "exploration_final_eps", "n_envs", "seed", "use_sde", "normalize_advantage",
)  # fmt: skip
_TARGETS = re.compile(r"(actor_target|critic_target|q_net_target|quantile_net_target)\.")


def read_agent(file: Path) -> FileContent:
    """The policy of an agent, its hyper-parameters, time steps, and rewards of the evaluations beside it.

    Target networks, slow copies of networks that are kept, are left out.

    Raises:
        Unreadable: The archive is damaged or no agent.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            if not {"data", "policy.pth"} <= names:
                raise Unreadable("a zip archive, but no agent of Stable-Baselines3 (data and policy.pth)")
            data = json.loads(archive.read("data"))
            policy = load(archive.read("policy.pth"))
            version = (
                archive.read("_stable_baselines3_version").decode() if "_stable_baselines3_version" in names else None
            )
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise Unreadable(f"a truncated or damaged agent: {error}") from error
    if not isinstance(data, dict):
        raise Unreadable("an agent whose data are no hyper-parameters")
    state = state_in(policy)
    kept = {name: value for name, value in state.items() if not _TARGETS.match(name)}
    settings = {name: data[name] for name in _SETTINGS if name in data and not isinstance(data[name], dict | list)}
    if version:
        settings["sb3_version"] = version.strip()
    policy_class = data.get("policy_class")
    if isinstance(policy_class, dict) and (named := re.search(r"(\w+)'?>?$", str(policy_class.get("__module__", "")))):
        settings["policy_module"] = named[1]
    steps = data.get("num_timesteps")
    columns = configuration({name: value for name, value in settings.items() if value is not None})
    return FileContent(
        state=kept,
        step=int(steps) if finite(steps) else None,
        columns=columns | _evaluation(file.parent / "evaluations.npz", steps),
        notes=("target networks left out",) if len(kept) < len(state) else (),
    )


def _evaluation(file: Path, steps: Any) -> dict[str, Plain]:
    """Mean and deviation of the reward in the last evaluation until the agent's time step."""
    if not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as content:
            times, results = content["timesteps"], content["results"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
    until = np.flatnonzero(times <= steps) if finite(steps) else np.arange(len(times))
    if not len(until):
        return {}
    last = np.asarray(results[until[-1]], dtype=np.float64)
    return {"metric.mean_reward": float(last.mean()), "metric.std_reward": float(last.std())}
