"""Policies that were trained to choose experiments: deep adaptive design, with a likelihood or with a simulator only."""

from seqbdl.acquisition.policies.box import DesignBox
from seqbdl.acquisition.policies.policy import DesignPolicy, HistoryCritic
from seqbdl.acquisition.policies.training import PolicySettings, policy_bounds, rollout, train_policy

__all__ = ["DesignBox", "DesignPolicy", "HistoryCritic", "PolicySettings", "policy_bounds", "rollout", "train_policy"]
