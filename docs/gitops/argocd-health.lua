-- Argo CD's health of a ModelDeployment: the value of `resource.customizations.health.ortolan.dev_ModelDeployment` in
-- the ConfigMap argocd-cm. Needs none of Lua's libraries, which Argo CD keeps closed by default.
--
--   Progressing   the present spec was not looked at yet, or is being carried out
--   Degraded      it cannot be carried out (the revision before it may still serve), or the model stopped answering
--   Healthy       it is what serves; also while servers are added or taken away because of load

local status = obj.status or {}

-- The condition of this type; nil while it is absent.
local function condition(kind)
  for _, found in ipairs(status.conditions or {}) do
    if found.type == kind then
      return found
    end
  end
end

local function holds(kind)
  local found = condition(kind)
  return found ~= nil and found.status == "True"
end

local function health(state, found)
  return {status = state, message = found.reason .. ": " .. found.message}
end

if obj.metadata.deletionTimestamp ~= nil then
  return {status = "Progressing", message = "the model is being deleted"}
end
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Ortolan has not carried out this change yet"}
end
if holds("Reconciling") then
  return health("Progressing", condition("Reconciling"))
end
if holds("Stalled") then
  return health("Degraded", condition("Stalled"))
end

local ready = condition("Ready")
if ready == nil then
  return {status = "Progressing", message = "Ortolan has not said yet whether the model answers"}
end
if ready.status == "True" then
  -- Answering, and yet something a person should read: more servers are needed than are allowed.
  if holds("ScalingLimited") then
    return health("Healthy", condition("ScalingLimited"))
  end
  return health("Healthy", ready)
end
if ready.status == "False" then
  return health("Degraded", ready)
end
return health("Progressing", ready)
