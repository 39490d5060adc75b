variable "sources" {
  description = "File that scripts/image --sources created. Default: build/sources.tar.gz in the repository that contains this module."
  type        = string
  default     = null
  validation {
    condition     = fileexists(coalesce(var.sources, "${path.module}/../../../build/sources.tar.gz"))
    error_message = "sources must be a file. Create it with scripts/image --sources build/sources.tar.gz, and set sources to its path."
  }
}

variable "environment" {
  description = "Variables of the containers: BASE_IMAGE, BUILD_FLAGS, CHECK_INTERVAL, CONTAINERD_ADDRESS, CONTAINERD_SNAPSHOTTER (docs/image.md)."
  type        = map(string)
  default     = {}
  nullable    = false
  validation {
    condition = length(setsubtract(keys(var.environment), [
      "BASE_IMAGE", "BUILD_FLAGS", "CHECK_INTERVAL", "CONTAINERD_ADDRESS", "CONTAINERD_SNAPSHOTTER"
    ])) == 0
    error_message = "environment must contain only BASE_IMAGE, BUILD_FLAGS, CHECK_INTERVAL, CONTAINERD_ADDRESS and CONTAINERD_SNAPSHOTTER."
  }
}

variable "enabled" {
  description = "false removes all objects. The image stays on the cluster nodes."
  type        = bool
  default     = true
  nullable    = false
}
