import 'graphiql/setup-workers/vite'
import 'graphiql/style.css'
import './style.css'

import { createLocalStorage } from '@graphiql/toolkit'
import { GraphiQL, type GraphiQLProps } from 'graphiql'
import { createRoot } from 'react-dom/client'

import { exampleTabs } from './examples'
import { pageFetcher } from './fetcher'

// In the default namespace, the tabs of another GraphiQL on the same host and port would replace the examples. So would
// those of another app that the same host mounts.
const storage = createLocalStorage({ namespace: `headwater${window.location.pathname}` })

function stored(key: string): string | null {
  return storage.getItem(`graphiql:${key}`)
}

async function firstVisit(): Promise<Pick<GraphiQLProps, 'defaultTabs' | 'initialVariables'>> {
  const defaultTabs = await exampleTabs('./explorer/examples.json') // relative to the page
  // GraphiQL 5.4 fills all editors from the first default tab except the one for variables.
  return { defaultTabs, initialVariables: defaultTabs[0]?.variables ?? '' }
}

async function start(element: HTMLElement): Promise<void> {
  const tabs = stored('tabState') === null ? await firstVisit() : {}
  createRoot(element).render(
    <GraphiQL
      fetcher={pageFetcher(window.location)}
      storage={storage}
      isHeadersEditorEnabled
      // GraphiQL does not restore this choice of the user after a reload.
      shouldPersistHeaders={stored('shouldPersistHeaders') === 'true'}
      showPersistHeadersSettings
      {...tabs}
    >
      <GraphiQL.Logo>Headwater</GraphiQL.Logo>
    </GraphiQL>,
  )
}

const element = document.getElementById('explorer')
if (element) void start(element)
