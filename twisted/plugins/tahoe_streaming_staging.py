"""Makes Tahoe nodes find the staging plugin (twisted.plugin looks into twisted/plugins of every path entry)."""

from helper.staging_plugin import plugin

__all__ = ["plugin"]
